package main

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// A request that waits for a leader which is gone ends when another one is
// announced, and is one that a backup, a restore and a mirror send again.
func TestANewLeaderEndsWhatWaits(t *testing.T) {
	w := newWire(t)
	w.answer("cantus.info.0", func(n int, _ *nats.Msg) {
		if n == 1 { // it is not answered
			if err := w.nc.Publish("cantus.advisory.leader", []byte(`{"partition":0}`)); err != nil {
				t.Error(err)
			}
		}
	})
	flags := connection{Server: w.url, Timeout: duration(10 * time.Second), natsFlags: natsFlags{Prefix: "cantus", Inbox: "_INBOX"}}
	l, err := flags.open(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if err := l.watchLeaders(); err != nil {
		t.Fatal(err)
	}
	err = l.ask(t.Context(), "cantus.info.0", nil, new(subjects.PartitionInfo))
	if !errors.Is(err, errNewLeader) || !isTransient(err) || !restoreGoesOn(err) {
		t.Errorf("the request ended with %v", err)
	}
}

// A mirror that starts while a node dies asks again: it goes on for years, and
// must not end because one answer is lost.
func TestAMirrorsFirstQuestionsAreAskedAgain(t *testing.T) {
	w := newWire(t)
	side := func(id string) *natsConn { // its prefix is its id
		w.answer(id+".info", func(n int, m *nats.Msg) {
			if n == 1 {
				return
			}
			if err := m.Respond([]byte(`{"id":"` + id + `","partitions":1}`)); err != nil {
				t.Error(err)
			}
		})
		w.answer(id+".info.0", func(n int, m *nats.Msg) {
			if n == 1 {
				return
			}
			if err := m.Respond([]byte(`{"partition":0,"namespace":"orders"}`)); err != nil {
				t.Error(err)
			}
		})
		flags := connection{Server: w.url, Timeout: duration(100 * time.Millisecond), natsFlags: natsFlags{Prefix: prefix(id), Inbox: "_INBOX"}}
		l, err := flags.open(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.close)
		return l
	}
	source, target := side("a"), side("b")
	from, to, partitions, err := new(mirrorRunCmd).check(t.Context(), source, target)
	if err != nil || from != "a" || to != "b" || len(partitions) != 1 {
		t.Errorf("%q is mirrored into %q, partitions %v: %v", from, to, partitions, err)
	}
	for _, l := range []*natsConn{source, target} {
		if in, err := l.belongings(t.Context(), partitions); err != nil || in[0].Name != "orders" {
			t.Errorf("partition 0 belongs to %+v: %v", in, err)
		}
	}
}
