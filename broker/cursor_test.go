package broker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/subjects"
)

func TestCursors(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	for i, step := range []struct{ name, body, want string }{
		{"c", ``, `{"partition":0,"name":"c","txid":0,"high_water_mark":10}`},
		{"c", `{"txid":5,"expected":3}`, `{"partition":0,"name":"c","txid":0,"high_water_mark":10,"error":{"code":409,"reason":"wrong_last","message":"cursor \"c\" stands at 0, not at 3"}}`},
		{"c", `{"txid":5,"expected":0}`, `{"partition":0,"name":"c","txid":5,"time":"T","high_water_mark":10}`},
		{"c", ``, `{"partition":0,"name":"c","txid":5,"time":"T","high_water_mark":10}`},
		{"c", `{"txid":6,"expected":0}`, `{"partition":0,"name":"c","txid":5,"time":"T","high_water_mark":10,"error":{"code":409,"reason":"wrong_last","message":"cursor \"c\" stands at 5, not at 0"}}`},
		{"c", `{"txid":10}`, `{"partition":0,"name":"c","txid":10,"time":"T","high_water_mark":10}`},
		{"c", `{"txid":2,"expected":10}`, `{"partition":0,"name":"c","txid":2,"time":"T","high_water_mark":10}`}, // it may go back
		{"c", `{"txid":11}`, `{"partition":0,"name":"c","txid":2,"time":"T","high_water_mark":10,"error":{"code":412,"reason":"ahead","message":"position 11 is ahead of partition 0, whose last txid is 10: it comes from another log, or this log has lost transactions; stop, and check that cluster and partition are the right ones"}}`},
		{"other", ``, `{"partition":0,"name":"other","txid":0,"high_water_mark":10}`},
		{"c", `{"txid":0,"expected":3}`, `{"partition":0,"name":"c","txid":2,"time":"T","high_water_mark":10,"error":{"code":409,"reason":"wrong_last","message":"cursor \"c\" stands at 2, not at 3"}}`},
		{"c", `{"txid":0,"expected":2}`, `{"partition":0,"name":"c","txid":0,"high_water_mark":10}`},
		{"c", ``, `{"partition":0,"name":"c","txid":0,"high_water_mark":10}`},
		{"c", `{"txid":1,"expected":0}`, `{"partition":0,"name":"c","txid":1,"time":"T","high_water_mark":10}`},
	} {
		m := ask(t, nc, "cantus.cursor.0."+step.name, step.body)
		if got := timeless(m.Data); got != step.want {
			t.Fatalf("step %d: %s\n got %s\nwant %s", i, step.body, got, step.want)
		}
		if strings.Contains(step.want, `"error"`) != (m.Header.Get(subjects.HeaderErrorCode) != "") {
			t.Errorf("step %d: headers %v", i, m.Header)
		}
	}
	for _, body := range []string{`{}`, `{"txid":-1}`, `{"txid":"1"}`, `{"txid":1,"expect":1}`, `{"txid":1,"expected":null}`, `{`, `null`, `{"txid":1} x`} {
		wantRefusal(t, ask(t, nc, "cantus.cursor.0.c", body), subjects.BadRequest)
	}
	wantRefusal(t, ask(t, nc, "cantus.cursor.0."+strings.Repeat("x", 65), ``), subjects.BadRequest)
	if ms := checkLog(t, nc, 0); len(ms) != 10 {
		t.Errorf("cursors have taken txids: %d", len(ms))
	}
}

// listed requests the cursors of partition 0, page by page.
func listed(t *testing.T, nc *nats.Conn, most int) (all []subjects.CursorPosition, pages int) {
	t.Helper()
	for after := ""; ; pages++ {
		body, err := json.Marshal(subjects.CursorsRequest{After: after, Max: most})
		if err != nil {
			t.Fatal(err)
		}
		m := ask(t, nc, "cantus.cursors.0", string(body))
		var r subjects.CursorsReply
		if err := json.Unmarshal(m.Data, &r); err != nil || r.Error != nil {
			t.Fatalf("%s: %v", m.Data, err)
		}
		all = append(all, r.Cursors...)
		if r.Next == "" {
			return all, pages + 1
		}
		if r.Next != all[len(all)-1].Name {
			t.Fatalf("the page ends with %+v, and the next is after %q", r.Cursors[len(r.Cursors)-1], r.Next)
		}
		after = r.Next
	}
}

func TestCursorsAreListed(t *testing.T) {
	_, nc := one(t, broker.Options{NATSConfig: config(t, "max_payload: 8192")})
	fill(t, nc)
	if m := ask(t, nc, "cantus.cursors.0", ""); string(m.Data) != `{"partition":0,"cursors":[],"high_water_mark":10}` {
		t.Errorf("%s", m.Data)
	}
	want := map[string]subjects.CursorReply{}
	for i := range 100 {
		name := fmt.Sprintf("%02d%s", i, strings.Repeat(`"`, i%63)) // which JSON escapes
		var r subjects.CursorReply
		if err := json.Unmarshal(ask(t, nc, "cantus.cursor.0."+name, fmt.Sprintf(`{"txid":%d}`, i%10+1)).Data, &r); err != nil || r.Error != nil {
			t.Fatal(r, err)
		}
		want[name] = r
	}
	var owned subjects.CursorReply
	if err := json.Unmarshal(ask(t, nc, "cantus.cursor.0.owned", `{"txid":0,"owner":"session:s1"}`).Data, &owned); err != nil || owned.Owner == "" {
		t.Fatal(owned, err)
	}
	want["owned"] = owned
	ask(t, nc, "cantus.cursor.0.00", `{"txid":0}`) // removes it
	delete(want, "00")
	for _, most := range []int{0, 1, 7, 99, 1000} {
		all, pages := listed(t, nc, most)
		if len(all) != len(want) || pages < 2 || most == 1 && pages != len(want) {
			t.Errorf("max %d: %d cursors on %d pages", most, len(all), pages)
		}
		for i, c := range all {
			if w := want[c.Name]; c.Txid != w.Txid || c.Owner != w.Owner || !c.Time.Equal(w.Time) || i > 0 && c.Name <= all[i-1].Name {
				t.Errorf("max %d: %+v, want %+v", most, c, w)
			}
		}
	}
	for _, body := range []string{`{"max":0}`, `{"max":1001}`, `{"after":""}`, `{"after":"a.b"}`, `{"before":"a"}`, `[]`, `{"max":null}`} {
		wantRefusal(t, ask(t, nc, "cantus.cursors.0", body), subjects.BadRequest)
	}
}

// When several clients set a cursor to the same position at the same moment,
// each gets another time. The one whose time the cursor has was the last.
func TestEachCursorSetHasATimeOfItsOwn(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	const setters = 200
	sub, err := nc.SubscribeSync(nats.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	for range setters { // so that many go into one batch
		if err := nc.PublishRequest("cantus.cursor.0.c", sub.Subject, []byte(`{"txid":1}`)); err != nil {
			t.Fatal(err)
		}
	}
	times := map[string]bool{}
	last := ""
	for range setters {
		m, err := sub.NextMsg(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		var r subjects.CursorReply
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Fatal(err)
		}
		last = r.Time.String()
		times[last] = true
	}
	if len(times) != setters {
		t.Errorf("%d sets have %d times", setters, len(times))
	}
	var r subjects.CursorReply
	if err := json.Unmarshal(ask(t, nc, "cantus.cursor.0.c", ``).Data, &r); err != nil || r.Time.String() != last {
		t.Errorf("it was last set at %s, and says %s; %v", last, r.Time, err)
	}
}

// Of many clients that move a cursor from the same position at the same moment,
// one succeeds.
func TestOneCursorWriteWins(t *testing.T) {
	_, nc := one(t, broker.Options{})
	fill(t, nc)
	for from := range 5 {
		replies := make(chan subjects.CursorReply, 20)
		var all sync.WaitGroup
		for range cap(replies) {
			all.Go(func() {
				var r subjects.CursorReply
				m, err := nc.Request("cantus.cursor.0.c", fmt.Appendf(nil, `{"txid":%d,"expected":%d}`, from+1, from), patience)
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
		won := 0
		for r := range replies {
			if r.Error == nil {
				won++
			}
			if r.Txid != uint64(from+1) {
				t.Errorf("reply %+v", r)
			}
		}
		if won != 1 {
			t.Fatalf("%d have won", won)
		}
	}
}

func TestCursorLimit(t *testing.T) {
	_, nc := one(t, broker.Options{})
	appendTx(t, nc, "cantus.append.0", "x")
	sub, err := nc.SubscribeSync(nc.NewRespInbox())
	if err != nil {
		t.Fatal(err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	const atOnce = 100 // few enough that none is refused as busy, on a slow machine too
	for i := range subjects.MaxCursors {
		if err := nc.PublishRequest(fmt.Sprint("cantus.cursor.0.c", i), sub.Subject, []byte(`{"txid":1}`)); err != nil {
			t.Fatal(err)
		}
		if (i+1)%atOnce != 0 {
			continue
		}
		for range atOnce {
			m, err := sub.NextMsg(patience)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(m.Data), "error") {
				t.Fatalf("refused: %s", m.Data)
			}
		}
	}
	wantRefusal(t, ask(t, nc, "cantus.cursor.0.one-more", `{"txid":1}`), subjects.TooLarge)
	for _, c := range [][2]string{{"one-more", `{"txid":0}`}, {"one-more", ``}, {"c7", `{"txid":1}`}, {"c7", `{"txid":0}`}, {"one-more", `{"txid":1}`}} {
		if m := ask(t, nc, "cantus.cursor.0."+c[0], c[1]); m.Header.Get(subjects.HeaderErrorCode) != "" {
			t.Errorf("%s %s: %s", c[0], c[1], m.Data)
		}
	}
}

func TestCursorsAfterRestart(t *testing.T) {
	testkit.NotShort(t, "it appends, trims and restarts again and again")
	opts := broker.Options{Partitions: 1}
	dir := t.TempDir()
	n, nc := openNode(t, dir, opts)
	fill(t, nc)
	set := func(nc *nats.Conn, name string, txid int) {
		t.Helper()
		if m := ask(t, nc, "cantus.cursor.0."+name, fmt.Sprintf(`{"txid":%d}`, txid)); m.Header.Get(subjects.HeaderErrorCode) != "" {
			t.Fatalf("%s", m.Data)
		}
	}
	check := func(nc *nats.Conn, want map[string]string) {
		t.Helper()
		for name, body := range want {
			if m := ask(t, nc, "cantus.cursor.0."+name, ``); string(m.Data) != body {
				t.Errorf("%s: got %s, want %s", name, m.Data, body)
			}
		}
	}
	all := func(nc *nats.Conn) map[string]string {
		got := map[string]string{}
		for _, name := range []string{"stays", "moves", "goes", "comes-back", "never"} {
			got[name] = string(ask(t, nc, "cantus.cursor.0."+name, ``).Data)
		}
		return got
	}
	set(nc, "stays", 1)
	set(nc, "moves", 1)
	set(nc, "goes", 3)
	set(nc, "comes-back", 4)
	n, nc = reopen(t, n, dir, opts) // with a snapshot
	set(nc, "moves", 7)
	set(nc, "goes", 0)
	set(nc, "comes-back", 0)
	set(nc, "comes-back", 5)
	want := all(nc)
	if !strings.Contains(want["moves"], `"txid":7`) || !strings.Contains(want["goes"], `"txid":0`) {
		t.Fatalf("before: %v", want)
	}
	crashed := t.TempDir()
	copyDir(t, dir, crashed)
	_, after := openNode(t, crashed, opts)
	check(after, want)
	checkLog(t, after, 0)
	_, nc = reopen(t, n, dir, opts)
	check(nc, want)
}

// copyDir copies a data directory that is in use, as a crash would leave it.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	manifest := filepath.Join(from, "store", "MANIFEST")
	testkit.Until(t, "a copy within which no table changed", func() bool {
		before, err := os.ReadFile(manifest)
		if err != nil {
			t.Fatal(err)
		}
		copied := copyOnce(t, from, to)
		after, err := os.ReadFile(manifest)
		if err != nil {
			t.Fatal(err)
		}
		if copied != nil && !errors.Is(copied, fs.ErrNotExist) {
			t.Fatal(copied)
		}
		if copied == nil && bytes.Equal(before, after) {
			return true
		}
		if err := os.RemoveAll(to); err != nil { // the store's tables changed meanwhile
			t.Fatal(err)
		}
		return false
	})
}

func copyOnce(t *testing.T, from, to string) error {
	t.Helper()
	// A copy of a file that is being written is no snapshot. Nothing is written
	// here: the node is idle.
	if err := os.CopyFS(filepath.Join(to, "copy"), os.DirFS(from)); err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(to, "copy"))
	for _, e := range entries {
		err = errors.Join(err, os.Rename(filepath.Join(to, "copy", e.Name()), filepath.Join(to, e.Name())))
	}
	return errors.Join(err, os.Remove(filepath.Join(to, "copy")))
}
