package client_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/cantustest"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// After an attempt without an answer, a conflict is final, because the message
// id is looked at first. One that may be false is not: the first attempt may be
// looked up in the log still, and commit. Neither is expired: another leader's
// clock may be behind.
func TestAConflictThatMayBeFalseDecidesNothing(t *testing.T) {
	l := cantustest.New(t, cantustest.Options{})
	nc, err := l.Connect()
	if err != nil {
		t.Fatal(err)
	}
	const conflict = `"code":409,"reason":"conflict","message":"m","lock":"a","txid":3,"conflicts":[{"lock":"a","mode":"write","txid":3,"forgotten":%t}]`
	for i, refusal := range []struct {
		error string
		open  bool // it says nothing of an earlier attempt
		is    error
	}{
		{fmt.Sprintf(conflict, false), false, client.ErrConflict},
		{fmt.Sprintf(conflict, true), true, client.ErrConflict},
		{`"code":408,"reason":"expired","message":"m"`, true, client.ErrExpired},
	} {
		for unanswered := range int64(2) {
			prefix := fmt.Sprintf("fake-%d-%d", i, unanswered)
			var asked atomic.Int64
			sub, err := nc.Subscribe(subjects.Names{Prefix: prefix}.Batch(0), func(m *nats.Msg) {
				if asked.Add(1) > unanswered {
					_ = m.Respond(fmt.Appendf(nil, `{"partition":0,"results":[{"index":0,"count":1,"error":{%s}}],"high_water_mark":3}`, refusal.error))
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			c := newClient(t, nc, client.Options{Prefix: prefix, AttemptTimeout: 50 * time.Millisecond})
			_, err = c.Append(soon(t), &client.Request{WriteLocks: []string{"a"}, HighWaterMark: 1})
			if unknown := errors.Is(err, client.ErrUnknown); unknown != (refusal.open && unanswered > 0) || !errors.Is(err, refusal.is) {
				t.Errorf("%s, %d attempts without an answer: %v", refusal.error, unanswered, err)
			}
			if err := sub.Unsubscribe(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
