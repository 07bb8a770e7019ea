package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/broker"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
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

// mustBackUp backs up, which must succeed, and checks where the cursor is then.
func (n *inProcess) mustBackUp(to string, cursor uint64, more ...string) {
	n.t.Helper()
	if status, errOut := n.backUp(to, more...); status != 0 {
		n.t.Fatalf("status %d: %s", status, errOut)
	}
	if at := n.cursorAt("archive"); at.Txid != cursor {
		n.t.Fatalf("the cursor is at %d, not at %d", at.Txid, cursor)
	}
}

// refused backs up a copy that has not moved the cursor last: it stays.
func (n *inProcess) refused(to string) {
	n.t.Helper()
	was := n.cursorAt("archive")
	status, errOut := n.backUp(to)
	if status != exitFailed || !strings.Contains(errOut, "another copy of this backup moves it, or this one was run ten times without --cursor since; ") || !strings.Contains(errOut, "--take-cursor") {
		n.t.Errorf("status %d: %s", status, errOut)
	}
	if at := n.cursorAt("archive"); at.Txid != was.Txid || at.Owner != was.Owner || !at.Time.Equal(was.Time) {
		n.t.Errorf("the cursor is %+v, and was %+v", at, was)
	}
}

// Of two copies of a backup, the first one that moves the cursor has it, even
// though both have run at each end of the log.
func TestTwoCopiesOfABackup(t *testing.T) {
	n, dir := openInProcess(t, broker.Options{}), t.TempDir()
	original, second := filepath.Join(dir, "original"), filepath.Join(dir, "second")
	n.append(1, 3)
	n.mustBackUp(original, 3)
	if err := os.CopyFS(second, os.DirFS(original)); err != nil {
		t.Fatal(err)
	}
	n.mustBackUp(second, 3) // nothing is new: both may still move it
	for i := uint64(4); i < 8; i++ {
		n.append(int(i), int(i))
		n.mustBackUp(original, i)
		n.refused(second)
		n.refused(second)
		n.mustBackUp(original, i)
	}
	n.append(8, 8)
	n.refused(second) // though it is the first at this end
	n.mustBackUp(original, 8)
	n.mustBackUp(second, 8, "--take-cursor")
	n.append(9, 9)
	n.refused(original)
	n.mustBackUp(second, 9)
}

// A backup goes on with a cursor that it has put where it is, also if many runs
// did not move it, or if a version moved it whose owner is the id alone.
func TestTheCursorGoesOn(t *testing.T) {
	n, to := openInProcess(t, broker.Options{}), t.TempDir()
	n.append(1, 1)
	n.mustBackUp(to, 1)
	for i := 2; i < 8; i++ { // as if the runs were killed before the cursor was moved
		n.append(i, i)
		command(t, "backup", "--to", to, "--server", n.node.ClientURL(), "--quiet")
	}
	n.append(8, 8)
	n.mustBackUp(to, 8)
	owner, _, _ := strings.Cut(n.cursorAt("archive").Owner, ",")
	n.setCursor(`{"txid":0}`)
	n.setCursor(`{"txid":8,"owner":"` + owner + `"}`)
	n.mustBackUp(to, 8)
	n.append(9, 9)
	n.mustBackUp(to, 9)
}

// From the first run on the cursor is never away, though each run has another
// writer, or another backup takes it: while there is none, nobody can tell how
// far the archive is behind.
func TestTheCursorIsNeverAway(t *testing.T) {
	n, to := openInProcess(t, broker.Options{}), t.TempDir()
	for i := 1; i <= 4; i++ {
		n.append(i, i)
		n.mustBackUp(to, uint64(i))
		n.mustBackUp(to, uint64(i))
	}
	n.mustBackUp(t.TempDir(), 4, "--take-cursor")
	n.mustBackUp(to, 4, "--take-cursor")
	if err := n.node.Close(); err != nil {
		t.Fatal(err)
	}
	var positions []uint64
	for _, c := range cursorWrites(t, n.dir) {
		if string(c.Name) == "archive" {
			positions = append(positions, c.Txid)
		}
	}
	if want := []uint64{1, 2, 3, 4, 4, 4}; !slices.Equal(positions, want) {
		t.Errorf("the cursor was set to %d, not to %d", positions, want)
	}
}

// cursorWrites returns the cursor writes in the log of partition 0.
func cursorWrites(t *testing.T, dir string) (all []wal.Cursor) {
	t.Helper()
	s, err := wal.Open(dir, wal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log := s.Log(0)
	for e, err := range log.Entries(log.FirstIndex(), log.LastIndex()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Type != 0 {
			continue
		}
		b, err := wal.ParseBatch(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		if b.Kind != wal.CursorWrites {
			continue
		}
		records := b.Read()
		for c := (wal.Cursor{}); records.NextCursor(&c); {
			all = append(all, c)
		}
		if err := records.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func (n *inProcess) setCursor(request string) {
	n.t.Helper()
	nc, err := n.node.Conn()
	if err != nil {
		n.t.Fatal(err)
	}
	defer nc.Close()
	msg, err := nc.Request("cantus.cursor.0.archive", []byte(request), 10*time.Second)
	if err != nil || bytes.Contains(msg.Data, []byte("error")) {
		n.t.Fatalf("%s, %v", msg.Data, err)
	}
}

// A partition without news keeps its cursor, however many manifests other
// partitions' news makes: the one that has its owner is deleted.
func TestTheCursorOfAnIdlePartition(t *testing.T) {
	n, to := openInProcess(t, broker.Options{}), t.TempDir()
	n.append(1, 1)
	n.mustBackUp(to, 1)
	for i := 1; i <= 12; i++ {
		nc, err := n.node.Conn()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Request("cantus.cursor.0.other", fmt.Appendf(nil, `{"txid":%d}`, i%2), 10*time.Second); err != nil {
			t.Fatal(err)
		}
		nc.Close()
		n.mustBackUp(to, 1) // the other cursor is new, and no transaction
	}
	n.append(2, 2)
	n.mustBackUp(to, 2)
}
