package subjects_test

import (
	"strings"
	"testing"

	"github.com/cantuslog/cantus/subjects"
)

func TestNames(t *testing.T) {
	for _, n := range []struct {
		names  subjects.Names
		prefix string
	}{{subjects.Names{}, "cantus"}, {subjects.Names{Prefix: "bank.log"}, "bank.log"}} {
		for _, c := range []struct{ got, want string }{
			{n.names.Append(0), ".append.0"},
			{n.names.AppendKey("alice"), ".append.key.alice"},
			{n.names.Batch(12), ".batch.12"},
			{n.names.Read(3), ".read.3"},
			{n.names.ReplicaRead(3), ".replica.read.3"},
			{n.names.Get(3), ".get.3"},
			{n.names.Info(), ".info"},
			{n.names.PartitionInfo(3), ".info.3"},
			{n.names.Cursor(3, "billing"), ".cursor.3.billing"},
			{n.names.Feed(3, "tx"), ".feed.3.tx"},
			{n.names.Feed(3, ">"), ".feed.3.>"},
			{n.names.PackedFeed(3), ".packed.3"},
			{n.names.Advisory("leader"), ".advisory.leader"},
		} {
			if c.got != n.prefix+c.want {
				t.Errorf("got %q, want %q", c.got, n.prefix+c.want)
			}
		}
	}
}

func TestCheckPrefix(t *testing.T) {
	for _, good := range []string{subjects.DefaultPrefix, "a", "bank.log", "a.b.c.d", "a$b"} {
		if err := subjects.CheckPrefix(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for bad, word := range map[string]string{
		"": "empty", ".": "empty", "a.": "empty", "a.b.c.d.e": "5 tokens", "$SRV": "$", "a.$b": "$",
		"a.>": "wildcard", "*": "wildcard", "a b": "white space", "a\n": "white space", "a\xff": "UTF-8",
	} {
		if err := subjects.CheckPrefix(bad); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v, want it refused with %q", bad, err, word)
		}
	}
}
