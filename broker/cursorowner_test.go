package broker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// cursorStep is a request to the cursor c of partition 0, and how the answer
// goes on after the cursor's name.
type cursorStep struct{ body, want string }

func checkCursorSteps(t *testing.T, nc *nats.Conn, steps ...cursorStep) {
	t.Helper()
	for i, step := range steps {
		m := ask(t, nc, "cantus.cursor.0.c", step.body)
		if got := timeless(m.Data); !strings.HasPrefix(got, `{"partition":0,"name":"c",`+step.want) {
			t.Fatalf("step %d: %s\n got %s\nwant %s", i, step.body, got, step.want)
		}
	}
}

// cursorRefused is the answer of a cursor as it is, and why a request was
// refused.
func cursorRefused(at, message string) string {
	return at + `"high_water_mark":10,"error":{"code":409,"reason":"wrong_last","message":"cursor \"c\" stands at ` + message
}

// A cursor with an owner is moved by its owner alone, until somebody sets it
// without naming one. A restart keeps its owner.
func TestACursorHasAnOwner(t *testing.T) {
	dir := t.TempDir()
	n, nc := openNode(t, dir, broker.Options{Partitions: 1})
	fill(t, nc)
	at5, at8 := `"txid":5,"time":"T","owner":"a",`, `"txid":8,"time":"T",`
	checkCursorSteps(t, nc,
		cursorStep{`{"txid":5,"owner":"a"}`, at5 + `"high_water_mark":10}`},
		cursorStep{`{"txid":5,"owner":"b"}`, cursorRefused(at5, `5 and is a's: to take it give \"expected_owner\":\"a\"`)},
		cursorStep{`{"txid":6,"expected":5,"owner":"b"}`, cursorRefused(at5, `5 and is a's: to take it give \"expected_owner\":\"a\"`)},
		cursorStep{`{"txid":6,"expected":4,"owner":"a"}`, cursorRefused(at5, `5, not at 4"`)},
		cursorStep{`{"txid":0,"owner":"b"}`, cursorRefused(at5, `5 and is a's: to take it give \"expected_owner\":\"a\"`)},
		cursorStep{`{"txid":6,"expected":5,"owner":"a"}`, `"txid":6,"time":"T","owner":"a","high_water_mark":10}`},
	)
	n, nc = reopen(t, n, dir, broker.Options{Partitions: 1}) // with a snapshot
	checkCursorSteps(t, nc,
		cursorStep{``, `"txid":6,"time":"T","owner":"a","high_water_mark":10}`},
		cursorStep{`{"txid":0}`, `"txid":0,"high_water_mark":10}`},
		cursorStep{`{"txid":7,"expected":0,"owner":"b"}`, `"txid":7,"time":"T","owner":"b","high_water_mark":10}`},
		cursorStep{`{"txid":8}`, at8 + `"high_water_mark":10}`},
		cursorStep{`{"txid":9,"owner":"b"}`, cursorRefused(at8, `8 and has no owner: to take it give \"expected_owner\":\"\"`)},
	)
	for _, field := range []string{"owner", "expected_owner"} {
		for _, value := range []string{`"a.b"`, `null`, `1`, `"` + strings.Repeat("x", 65) + `"`} {
			wantRefusal(t, ask(t, nc, "cantus.cursor.0.c", `{"txid":1,"`+field+`":`+value+`}`), subjects.BadRequest)
		}
	}
	wantRefusal(t, ask(t, nc, "cantus.cursor.0.c", `{"txid":1,"owner":""}`), subjects.BadRequest)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// Whoever names the owner that a cursor has now gives it another one, or none,
// in one step. A repeat changes nothing, and says that it is done. Neither a
// snapshot nor the log forgets it.
func TestACursorChangesItsOwner(t *testing.T) {
	dir, opts := t.TempDir(), broker.Options{Partitions: 1}
	n, nc := openNode(t, dir, opts)
	fill(t, nc)
	at5, at6, free := `"txid":5,"time":"T","owner":"a",`, `"txid":6,"time":"T","owner":"b",`, `"txid":7,"time":"T",`
	const take = `{"txid":6,"expected":5,"owner":"b","expected_owner":"a"}`
	checkCursorSteps(t, nc,
		cursorStep{`{"txid":5,"owner":"a","expected_owner":"x"}`, cursorRefused(`"txid":0,`, `0 with the owner \"\", not \"x\"`)},
		cursorStep{`{"txid":5,"expected":0,"owner":"a","expected_owner":""}`, at5 + `"high_water_mark":10}`},
		cursorStep{`{"txid":6,"owner":"b","expected_owner":""}`, cursorRefused(at5, `5 with the owner \"a\", not \"\"`)},
		cursorStep{`{"txid":6,"expected":5,"owner":"b","expected_owner":"b"}`, cursorRefused(at5, `5 with the owner \"a\", not \"b\"`)},
		cursorStep{`{"txid":6,"expected":4,"owner":"b","expected_owner":"a"}`, cursorRefused(at5, `5, not at 4"`)},
		cursorStep{take, at6 + `"high_water_mark":10}`},
		cursorStep{take, cursorRefused(at6, `6 with the owner \"b\", not \"a\"`)},
	)
	crashed := t.TempDir()
	copyDir(t, dir, crashed)
	_, after := openNode(t, crashed, opts) // the cursor is in the log, and in no snapshot
	checkCursorSteps(t, after, cursorStep{``, at6 + `"high_water_mark":10}`}, cursorStep{take, cursorRefused(at6, `6 with the owner`)})
	n, nc = reopen(t, n, dir, opts) // with a snapshot
	checkCursorSteps(t, nc,
		cursorStep{take, cursorRefused(at6, `6 with the owner \"b\", not \"a\"`)},
		cursorStep{`{"txid":7,"expected_owner":"a"}`, cursorRefused(at6, `6 with the owner \"b\", not \"a\"`)},
		cursorStep{`{"txid":7,"expected_owner":"b"}`, free + `"high_water_mark":10}`},
		cursorStep{`{"txid":8,"owner":"a","expected_owner":"b"}`, cursorRefused(free, `7 with the owner \"\", not \"b\"`)},
		cursorStep{`{"txid":5,"expected":7,"owner":"a","expected_owner":""}`, at5 + `"high_water_mark":10}`},
		cursorStep{`{"txid":0,"expected_owner":"b"}`, cursorRefused(at5, `5 with the owner \"a\", not \"b\"`)},
		cursorStep{`{"txid":0,"expected":5,"expected_owner":"a"}`, `"txid":0,"high_water_mark":10}`},
	)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// Of many that take a cursor from its owner at the same moment, one succeeds,
// although none moves it.
func TestOneTakesACursor(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	owner := ""
	for round := range 5 {
		replies := make(chan subjects.CursorReply, 20)
		var all sync.WaitGroup
		for i := range cap(replies) {
			all.Go(func() {
				var r subjects.CursorReply
				body := fmt.Appendf(nil, `{"txid":%d,"owner":"%d-%d","expected_owner":"%s"}`, 3, round, i, owner)
				m, err := nc.Request("cantus.cursor.0.c", body, patience)
				if err == nil {
					err = json.Unmarshal(m.Data, &r)
				}
				if err != nil {
					t.Error(err)
				}
				replies <- r
			})
		}
		all.Wait()
		close(replies)
		won, has := 0, ""
		for r := range replies {
			if r.Error == nil {
				won++
			}
			if has == "" {
				has = r.Owner
			}
			if r.Owner != has || r.Owner == owner || r.Txid != 3 {
				t.Errorf("reply %+v", r)
			}
		}
		if owner = has; won != 1 {
			t.Fatalf("%d have won", won)
		}
	}
}
