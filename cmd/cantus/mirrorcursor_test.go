package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/client"
	"github.com/cantuslog/cantus/subjects"
)

// request sends a request that must be served, and decodes the answer.
func (n *inProcess) request(subject, body string, answer any) {
	n.t.Helper()
	nc, err := n.node.Conn()
	if err != nil {
		n.t.Fatal(err)
	}
	defer nc.Close()
	msg, err := nc.Request(subject, []byte(body), 10*time.Second)
	if err == nil {
		err = json.Unmarshal(msg.Data, answer)
	}
	if err != nil || strings.Contains(string(msg.Data), `"error"`) {
		n.t.Fatalf("%s %s: %s, %v", subject, body, msg.Data, err)
	}
}

// connect opens a connection as a command does.
func (n *inProcess) connect() *natsConn {
	n.t.Helper()
	flags := connection{Server: n.node.ClientURL(), Timeout: duration(10 * time.Second), natsFlags: natsFlags{Prefix: "cantus", Inbox: "_INBOX"}}
	l, err := flags.open(n.t.Context(), "test")
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(l.close)
	return l
}

// A mirror that is promoted before it has caught up has all cursors: those past
// its end are at that end, so no consumer begins anew.
func TestAMirrorHasTheCursorsPastItsEnd(t *testing.T) {
	source, mirror := openInProcess(t, broker.Options{}), openInProcess(t, broker.Options{})
	from, to := source.node.ClientURL(), mirror.node.ClientURL()
	source.append(1, 3)
	command(t, "mirror", "--from", from, "--to", to, "--once", "--quiet")
	source.append(4, 5)
	for name, txid := range map[string]string{"billing": "5", "audit": "2"} {
		source.request("cantus.cursor.0."+name, `{"txid":`+txid+`}`, new(subjects.CursorReply))
	}

	l := source.connect()
	cluster, err := l.cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := &logMirror{source: newBackupSource(l), cluster: cluster.ID, quiet: true, metrics: newMirrorMetrics([]int{0})}
	m.loader = loader{conn: mirror.connect(), moved: m.arrived}
	for _, step := range []func() error{
		func() error { return m.look(t.Context()) },
		func() error { return m.begin(t.Context()) },
		func() error { _, err := m.attend(t.Context()); return err }, // hears the cursors
		func() error { _, err := m.attend(t.Context()); return err }, // sets them
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "mirror", "promote", "--server", to)
	for name, want := range map[string]uint64{"billing": 3, "audit": 2} {
		var at subjects.CursorReply
		if mirror.request("cantus.cursor.0."+name, "", &at); at.Txid != want || at.HighWaterMark != 3 {
			t.Errorf("the cursor %s is %+v, want %d of 3", name, at, want)
		}
	}
}

// Lines that a partition has from another cluster are found without the
// import's cursor, which a mirror gets a little later than the log.
func TestAnImportGoesOnAtAPromotedMirror(t *testing.T) {
	source, mirror := openInProcess(t, broker.Options{}), openInProcess(t, broker.Options{MaxMsgIDs: 1})
	dir := t.TempDir()
	half, all := filepath.Join(dir, "half.jsonl"), filepath.Join(dir, "all.jsonl")
	lines := `{"payload":"one"}` + "\n" + `{"payload":"two"}` + "\n"
	if err := os.WriteFile(half, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(all, []byte(lines+`{"payload":"three"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	source.append(1, 1) // so the import sets a cursor before its first line
	status, out := source.run("import", "0", half, "--json")
	var done importResult
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &done); status != 0 || err != nil || done.LastTxid != 3 {
		t.Fatalf("status %d: %s%v", status, out, err)
	}
	source.request("cantus.cursor.0."+done.Cursor, `{"txid":0}`, new(subjects.CursorReply)) // as if it were not mirrored yet
	source.append(4, 4)
	command(t, "mirror", "--from", source.node.ClientURL(), "--to", mirror.node.ClientURL(), "--once", "--quiet")
	command(t, "mirror", "promote", "--server", mirror.node.ClientURL())
	mirror.append(5, 5)
	for _, appended := range []string{"1 appended now", "0 appended now"} {
		status, out := mirror.run("import", "0", all)
		if status != 0 || !strings.Contains(out, "3 lines in partition 0, the last as transaction 6; "+appended) {
			t.Errorf("status %d: %s", status, out)
		}
	}
}

// Lines that are not in their order, as two imports at once may leave them
// where message ids are forgotten, are no import that goes on.
func TestAnImportWithoutItsOrderSaysWhatToDo(t *testing.T) {
	n := openInProcess(t, broker.Options{MaxMsgIDs: 1})
	file := filepath.Join(t.TempDir(), "lines.jsonl")
	if err := os.WriteFile(file, []byte(`{"payload":"one"}`+"\n"+`{"payload":"two"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out := n.run("import", "0", file, "--json")
	var done importResult
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &done); status != 0 || err != nil {
		t.Fatalf("status %d: %s%v", status, out, err)
	}
	if _, err := n.Append(t.Context(), &client.Request{ID: done.Cursor + "-1-0123456789ab"}); err != nil {
		t.Fatal(err)
	}
	status, out = n.run("import", "0", file)
	if status != exitFailed || !strings.Contains(out, "transaction 3 is line 1 of the import, and line 2 was before it; import what is missing from a file of its own, under another --name\n") {
		t.Errorf("status %d: %s", status, out)
	}
}
