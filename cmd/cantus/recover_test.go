package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/wal"
)

// What recover says of a directory tells an operator when not to recover from
// it: that of a mirror, and that of a standby.
func TestRecoverSaysWhenNotTo(t *testing.T) {
	const promote, standby = "promote the mirror", "n3 is a standby"
	for name, c := range map[string]struct {
		has  broker.Surviving
		want []string
		not  []string
	}{
		"voter":    {broker.Surviving{Nodes: []string{"n1", "n3"}}, nil, []string{promote, standby, "may lack much", "goes on with that"}},
		"mirror":   {broker.Surviving{Nodes: []string{"n1", "n3"}, Restoring: true, MirrorOf: "5e2c"}, []string{"is a mirror of cluster 5e2c. If", promote}, []string{standby, "cantus restore"}},
		"restored": {broker.Surviving{Nodes: []string{"n1", "n3"}, Restoring: true}, []string{`"cantus restore" goes on with that`}, []string{promote, standby}},
		"standby":  {broker.Surviving{Nodes: []string{"n1", "n2"}, Standby: true}, []string{standby, "has no vote on it (it is on n1, n2), and may lack much"}, []string{promote, "not to have it any more"}},
		"moved":    {broker.Surviving{Nodes: []string{"n1", "n2"}}, []string{"not to have it any more (it is on n1, n2)"}, []string{promote, standby}},
	} {
		c.has.Replica, c.has.LastTxid = true, 815
		r := &broker.Recovery{Identity: wal.Identity{Node: "n3", Cluster: "bank"}, Members: []string{"n1", "n2", "n3"}, Partitions: []broker.Surviving{c.has}}
		var out bytes.Buffer
		(&recoverCmd{Dir: "DIR"}).describe(&program{out: &out}, r, "bank")
		(&recoverCmd{Dir: "DIR"}).next(&program{out: &out}, "bank-2", "bank")
		for _, want := range append(c.want, `"cantus mirror promote"`, "cantus recover DIR --new-name bank-2") {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: it does not say %q: %s", name, want, &out)
			}
		}
		for _, not := range c.not {
			if strings.Contains(out.String(), not) {
				t.Errorf("%s: it says %q: %s", name, not, &out)
			}
		}
	}
}
