package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
)

// cursorAt returns a cursor of partition 0.
func (n *inProcess) cursorAt(name string) (at subjects.CursorReply) {
	n.t.Helper()
	nc, err := n.node.Conn()
	if err != nil {
		n.t.Fatal(err)
	}
	defer nc.Close()
	msg, err := nc.Request("cantus.cursor.0."+name, nil, 10*time.Second)
	if err == nil {
		err = json.Unmarshal(msg.Data, &at)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return at
}

// backUp backs a node up with the cursor archive, and returns the exit status
// and what was printed on standard error.
func (n *inProcess) backUp(to string, more ...string) (int, string) {
	n.t.Helper()
	var out, errOut bytes.Buffer
	p := &program{in: bytes.NewReader(nil), out: &out, errOut: &errOut}
	status := p.run(n.t.Context(), append([]string{"backup", "--to", to, "--cursor", "archive", "--server", n.node.ClientURL(), "--quiet"}, more...))
	return status, errOut.String()
}

// The cursor stays while the backup is damaged, with news or without: the log
// may be the only good copy.
func TestADamagedBackupMovesNoCursor(t *testing.T) {
	n, to := openInProcess(t, broker.Options{}), t.TempDir()
	for i := 1; i <= 7; i++ {
		n.append(i, i)
		if status, errOut := n.backUp(to); status != 0 {
			t.Fatal(errOut)
		}
	}
	segments, err := filepath.Glob(filepath.Join(to, "p0", "*.seg"))
	if err != nil || len(segments) != 7 {
		t.Fatalf("%q, %v", segments, err)
	}
	if err := os.Rename(segments[3], segments[3]+".away"); err != nil {
		t.Fatal(err)
	}
	for last := 8; last < 10; last++ {
		n.append(last, last) // the eighth segment is the one with which they are merged
		for range 2 {
			status, errOut := n.backUp(to)
			if status != exitFailed || !strings.Contains(errOut, "is missing") || !strings.Contains(errOut, "the cursor archive stays") {
				t.Errorf("status %d: %s", status, errOut)
			}
			if at := n.cursorAt("archive"); at.Txid != 7 {
				t.Errorf("the cursor is at %d", at.Txid)
			}
		}
	}
	if err := os.Rename(segments[3]+".away", segments[3]); err != nil {
		t.Fatal(err)
	}
	if status, errOut := n.backUp(to); status != 0 || n.cursorAt("archive").Txid != 9 {
		t.Errorf("repaired: status %d: %s", status, errOut)
	}
}
