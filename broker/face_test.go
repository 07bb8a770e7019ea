package broker

import (
	"crypto/ed25519"
	"testing"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/subjects"
)

// What is signed for a partition of one namespace is not valid for that of
// another, or of the cluster, with the same number.
func TestNamespacesSignWithKeysOfTheirOwn(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	facts := cluster.Facts{Namespaces: map[string]cluster.Namespace{"orders": {Partitions: []int{2, 1}}, "billing": {Partitions: []int{3}}}}
	names := subjects.Names{Prefix: "cantus"}
	var keys []ed25519.PublicKey
	for partition, want := range map[int]string{0: "cantus.batch.0", 2: "cantus.ns.orders.batch.0", 3: "cantus.ns.billing.batch.0"} {
		part, _ := facts.PartOf(partition)
		f := face{names: names, number: partition, partitions: 4, feedKey: key, batch: names.Batch(partition)}.in(part)
		if f.number != 0 || f.batch != want || f.partitions != map[int]int{0: 4, 2: 2, 3: 1}[partition] {
			t.Errorf("partition %d is %+v", partition, f)
		}
		message := []byte("message")
		hashes := string(subjects.AppendFeedHash(nil, message))
		for _, other := range keys {
			v := subjects.FeedVerifier{Key: other, Partition: f.number}
			if v.Verify(hashes, subjects.SignFeed(f.feedKey, f.number, hashes), message) == nil {
				t.Errorf("the signature of partition %d is valid for another namespace", partition)
			}
		}
		keys = append(keys, f.feedKey.Public().(ed25519.PublicKey))
	}
}
