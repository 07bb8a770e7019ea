package broker

import (
	"crypto/ed25519"
	"strings"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/subjects"
)

// face is how clients see a partition: under the names of its cluster, or of
// the namespace that it belongs to.
//
// A partition of a namespace is written, and followed by its feed, under that
// one's names alone. Under the cluster's names operators can read and describe
// it, move its cursors, and administer it.
type face struct {
	part       cluster.Part
	names      subjects.Names
	number     int // of the partition
	partitions int // how many there are
	feedKey    ed25519.PrivateKey
	batch      string // the subject of batch messages
}

// in returns the face of a partition in a namespace, which the face under the
// cluster's names becomes.
func (f face) in(part cluster.Part) face {
	if part.Namespace == "" {
		return f
	}
	names := f.names.Namespace(part.Namespace)
	return face{
		part: part, names: names, number: part.Number, partitions: part.Of,
		feedKey: namespaceKey(f.feedKey, part.Namespace), batch: names.Batch(part.Number),
	}
}

// namespaceKey returns the key that signs the packed feed of a namespace. Each
// has one of its own: what is signed names a partition by its number there, and
// must not be valid in another namespace.
func namespaceKey(key ed25519.PrivateKey, namespace string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(deriveKey(key.Seed(), namespace, "packed feed of a namespace"))
}

// under reports whether a subject is one of names.
func under(names subjects.Names, subject string) bool {
	return strings.HasPrefix(subject, names.Prefix) && len(subject) > len(names.Prefix) && subject[len(names.Prefix)] == '.'
}
