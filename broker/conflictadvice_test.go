package broker

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// Conflicts are advised while somebody listens, a bounded number of them, and
// what is left out is counted.
func TestConflictsAreAdvised(t *testing.T) {
	now, listening, room := time.Unix(1000, 0), false, 1<<20
	asked := 0
	a := conflictAdvice{
		partition: 3, now: func() time.Time { return now }, room: func() int { return room },
		interest: func() bool { asked++; return listening },
		encode: func(event string, fields map[string]any) []byte {
			b, err := json.Marshal(fields)
			if err != nil || event != "conflict" {
				t.Errorf("%s: %v", event, err)
			}
			return b
		},
	}
	conflict := subjects.Errorf(subjects.Conflict, "a lock")
	for range 2 * conflictLocks {
		conflict.Conflicts = append(conflict.Conflicts, subjects.ConflictingLock{Lock: "a", Mode: "write", Txid: 7})
	}
	for range 1000 {
		if b := a.advise("append", nil, conflict); b != nil {
			t.Fatalf("nobody listens to %s", b)
		}
	}
	if asked > conflictsAdvised {
		t.Errorf("the server was asked %d times in a second", asked)
	}
	listening, now = true, now.Add(time.Second)
	if b := a.advise("append", nil, subjects.Errorf(subjects.Busy, "")); b != nil {
		t.Errorf("busy is no conflict: %s", b)
	}
	var sent []string
	for range 100 {
		if b := a.advise("batch", []byte("m\xff"), conflict); b != nil {
			sent = append(sent, string(b))
		}
	}
	if len(sent) != conflictsAdvised || strings.Count(sent[19], `"lock"`) != conflictLocks || strings.Contains(sent[19], "left_out") || len(conflict.Conflicts) != 2*conflictLocks {
		t.Fatalf("%d sent: %.400s", len(sent), sent)
	}
	now, room = now.Add(time.Second), 10
	if b := a.advise("append", nil, conflict); b != nil {
		t.Errorf("it does not fit into a message: %s", b)
	}
	room = 1 << 20
	if b := string(a.advise("append", nil, conflict)); !strings.Contains(b, `"left_out":81`) {
		t.Errorf("after 81 left out: %s", b)
	}
	if b := string(a.advise("append", nil, conflict)); b == "" || strings.Contains(b, `"left_out"`) {
		t.Errorf("after none left out: %s", b)
	}
}
