package raftstore

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// trimmed returns a log with the entries 10 to 20. Those from 11 on have term
// 2, entry 10 has term 1.
func trimmed(t *testing.T) *wal.Log {
	t.Helper()
	log := openLog(t, t.TempDir(), wal.Options{})
	for i := uint64(1); i <= 20; i++ {
		if err := log.Append(wal.Entry{Index: i, Term: 1 + i/11}); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.TrimHead(9); err != nil {
		t.Fatal(err)
	}
	return log
}

func entries(from, to uint64) (all []*raft.Log) {
	for i := from; i <= to; i++ {
		all = append(all, &raft.Log{Index: i, Term: 1 + i/11})
	}
	return all
}

func TestRequestsThatBeginBeforeTheHead(t *testing.T) {
	f := &rpcFilter{log: trimmed(t)}
	for what, c := range map[string]struct {
		prev, first, last           uint64 // of the request
		wantPrev, wantTerm, wantOne uint64 // after the filter
		left                        int
	}{
		"from the very beginning": {0, 1, 15, 10, 1, 11, 5},
		"across the head":         {5, 6, 12, 10, 1, 11, 2},
		"all before it":           {2, 3, 8, 10, 1, 0, 0},
		"without entries":         {3, 1, 0, 10, 1, 0, 0},
		"up to the oldest":        {8, 9, 10, 10, 1, 0, 0},
		"behind it":               {12, 13, 15, 12, 2, 13, 3},
		"right behind it":         {10, 11, 12, 10, 1, 11, 2},
	} {
		q := &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: c.prev, PrevLogTerm: 1 + c.prev/11, Entries: entries(c.first, c.last)}
		if !f.filter(&raft.RPC{Command: q}) {
			t.Errorf("%s: the request was rejected", what)
		}
		if q.PrevLogEntry != c.wantPrev || q.PrevLogTerm != c.wantTerm || len(q.Entries) != c.left ||
			c.left > 0 && q.Entries[0].Index != c.wantOne {
			t.Errorf("%s: the request begins after entry %d of term %d and has %d entries", what, q.PrevLogEntry, q.PrevLogTerm, len(q.Entries))
		}
	}
}

// A replica's log may have entries after those of a request, which the leader
// does not have. The request's commit index must not commit them.
func TestARequestCommitsNoEntriesAfterItsOwn(t *testing.T) {
	f := &rpcFilter{log: trimmed(t)}
	for what, c := range map[string]struct {
		prev, first, last, commit, want uint64
	}{
		"all before the head":  {2, 3, 8, 18, 10},
		"without entries":      {12, 1, 0, 18, 12},
		"up to its last entry": {12, 13, 15, 18, 15},
		"less than it has":     {12, 13, 15, 13, 13},
	} {
		q := &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: c.prev, PrevLogTerm: 1 + c.prev/11, Entries: entries(c.first, c.last), LeaderCommitIndex: c.commit}
		if !f.filter(&raft.RPC{Command: q}) || q.LeaderCommitIndex != c.want {
			t.Errorf("%s: committed up to %d, want %d", what, q.LeaderCommitIndex, c.want)
		}
	}
}

func TestSnapshotsFromALeader(t *testing.T) {
	for what, c := range map[string]struct {
		index, term uint64
		has         bool
	}{
		"it has the entry":       {15, 2, true},
		"its last":               {20, 2, true},
		"its oldest":             {10, 1, true},
		"one that it trimmed":    {4, 1, true},
		"one that it lacks":      {21, 2, false},
		"another one there":      {15, 3, false},
		"another one at its end": {20, 7, false},
	} {
		f := &rpcFilter{log: trimmed(t), behind: make(chan struct{})}
		answers := make(chan raft.RPCResponse, 1)
		rest := strings.NewReader("state")
		q := &raft.InstallSnapshotRequest{Term: 9, LastLogIndex: c.index, LastLogTerm: c.term, Size: 5}
		if f.filter(&raft.RPC{Command: q, Reader: rest, RespChan: answers}) {
			t.Errorf("%s: the request was passed to raft", what)
		}
		a := <-answers
		if got := a.Response.(*raft.InstallSnapshotResponse).Success; got != c.has || (a.Error == nil) != c.has {
			t.Errorf("%s: %v, %v", what, got, a.Error)
		}
		if rest.Len() != 0 {
			t.Errorf("%s: the state is left in the stream", what)
		}
		select {
		case <-f.behind:
			if c.has {
				t.Errorf("%s: the replica is behind", what)
			}
		default:
			if !c.has {
				t.Errorf("%s: the replica is not behind", what)
			}
		}
	}
}

// Another replica's snapshot is not stored, whether its state is empty or not.
func TestAForeignSnapshotIsNotStored(t *testing.T) {
	m := snapshotStore{openLog(t, t.TempDir(), wal.Options{})}
	for _, state := range []string{"", "state"} {
		sink, err := m.Create(raft.SnapshotVersionMax, 5, 2, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(sink, strings.NewReader(state))
		if err = errors.Join(err, sink.Close()); !errors.Is(err, errForeignSnapshot) {
			t.Errorf("%q: got %v", state, err)
		}
	}
	if list, err := m.List(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// When a fetch begins, the entries after the log's snapshot are removed, and
// the index and term of its last entry are recorded, even if the node crashes
// in between.
func TestAFetchKeepsWhatIsCommitted(t *testing.T) {
	log := trimmed(t)
	if err := log.SetMeta(wal.Meta{Name: metaSnapshot, Value: []byte(`{"index":15,"term":2}`)}); err != nil {
		t.Fatal(err)
	}
	f, err := loadFetchState(log)
	if err != nil {
		t.Fatal(err)
	}
	if want := (fetchState{AckedIndex: 20, AckedTerm: 2, Keep: 15}); f != want {
		t.Fatalf("%+v, want %+v", f, want)
	}
	if err := log.SetMeta(f.meta(), wal.Meta{Name: metaSnapshot}); err != nil { // beginFetch crashes after this
		t.Fatal(err)
	}
	for range 2 {
		f, err = beginFetch(log)
		if err != nil {
			t.Fatal(err)
		}
		if want := (fetchState{AckedIndex: 20, AckedTerm: 2, Keep: 15, Truncated: true}); f != want || log.FirstIndex() != 10 || log.LastIndex() != 15 {
			t.Fatalf("%+v, the log has entries %d to %d", f, log.FirstIndex(), log.LastIndex())
		}
	}
	if err := log.Append(wal.Entry{Index: 16, Term: 2}); err != nil { // a fetched entry
		t.Fatal(err)
	}
	if _, err = beginFetch(log); err != nil || log.LastIndex() != 16 {
		t.Fatalf("%v: the fetched entry is lost", err)
	}
	if err := Reset(log); err != nil {
		t.Fatal(err)
	}
	if f, err = beginFetch(log); err != nil || f.AckedIndex != 20 || f.AckedTerm != 2 || log.LastIndex() != 0 {
		t.Fatalf("%+v, %v", f, err)
	}
}

func TestVeryLargeEntriesAreStoredInParts(t *testing.T) {
	testkit.NotShort(t, "it waits for elections and time-outs")
	s := &logStore{truncating: make(chan struct{}, 1), log: openLog(t, t.TempDir(), wal.Options{SegmentSize: 64 << 20})}
	var logs []*raft.Log
	data := make([]byte, 9<<20)
	for i := uint64(1); i <= 9; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: 1, Data: data})
	}
	if err := s.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	if last := s.log.LastIndex(); last != 9 {
		t.Fatalf("the log ends at entry %d", last)
	}
	// If a part can't be stored, the parts before it are removed.
	for i, l := range logs {
		l.Index = uint64(10 + i)
	}
	logs[8].Index = 99
	if err := s.StoreLogs(logs); err == nil {
		t.Fatal("a gap was stored")
	}
	if last := s.log.LastIndex(); last != 9 {
		t.Fatalf("the log ends at entry %d: a part was not removed", last)
	}
}

// Old entries are throttled. Entries in memory are not.
func TestOnlyOldEntriesAreThrottled(t *testing.T) {
	sent := 0
	tr := &transport{
		endpoint: &endpoint{dialCtx: t.Context()},
		inMemory: func(index uint64) bool { return index > 10 },
		throttle: func(ctx context.Context, bytes int) error {
			sent += bytes
			return ctx.Err()
		},
	}
	request := func(index uint64, bytes int) *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: index, Data: make([]byte, bytes)}}}
	}
	for _, c := range []struct {
		q    *raft.AppendEntriesRequest
		want int
	}{
		{request(11, 5000), 0},
		{&raft.AppendEntriesRequest{}, 0},
		{request(10, 400), 400},
		{request(1, 600), 1000},
		{request(11, 5000), 1000},
	} {
		if err := tr.throttleOld(c.q); err != nil || sent != c.want {
			t.Errorf("%v, %d were throttled, want %d", err, sent, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tr.endpoint.dialCtx = ctx
	if err := tr.throttleOld(request(1, 1)); err == nil {
		t.Error("throttleOld ignored the limiter's error")
	}
}

func TestImplausibleTerms(t *testing.T) {
	for what, c := range map[string]struct {
		own, term uint64
		leaps     bool
	}{
		"the same":            {7, 7, false},
		"an older one":        {7, 1, false},
		"the next":            {7, 8, false},
		"far ahead":           {7, 7 + 1<<32, false},
		"too far":             {7, 8 + 1<<32, true},
		"the largest":         {7, 1<<64 - 1, true},
		"ahead at the end":    {1<<64 - 9, 1<<64 - 1, false},
		"behind, from beyond": {1<<64 - 1, 1, false},
	} {
		if got := implausibleTerm(c.own, c.term); got != c.leaps {
			t.Errorf("%s: %t", what, got)
		}
	}
	f := &rpcFilter{log: trimmed(t), behind: make(chan struct{})}
	for _, q := range []any{
		&raft.AppendEntriesRequest{Term: 1 << 63}, &raft.RequestVoteRequest{Term: 1 << 63},
		&raft.RequestPreVoteRequest{Term: 1 << 63}, &raft.InstallSnapshotRequest{Term: 1 << 63},
	} {
		answers := make(chan raft.RPCResponse, 1)
		if f.filter(&raft.RPC{Command: q, Reader: strings.NewReader("state"), RespChan: answers}) {
			t.Errorf("%T was passed to raft", q)
		}
		if r := <-answers; !errors.Is(r.Error, errImplausibleTerm) {
			t.Errorf("the reply to %T is %v", q, r.Error)
		}
	}
}

// Raft panics on some of these: a member that is compromised could end the
// processes of others.
func TestEntriesThatNoLeaderSends(t *testing.T) {
	config := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}}})
	good := raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 4, Entries: []*raft.Log{
		{Index: 5, Term: 1, Type: raft.LogNoop}, {Index: 6, Term: 2, Type: raft.LogConfiguration, Data: config}, {Index: 7, Term: 2},
	}}
	f := &rpcFilter{log: openLog(t, t.TempDir(), wal.Options{})}
	for what, change := range map[string]func(*raft.AppendEntriesRequest){
		"":                  func(*raft.AppendEntriesRequest) {},
		"a missing entry":   func(q *raft.AppendEntriesRequest) { q.Entries[1] = nil },
		"a gap":             func(q *raft.AppendEntriesRequest) { q.Entries[2].Index = 8 },
		"a gap before":      func(q *raft.AppendEntriesRequest) { q.PrevLogEntry = 3 },
		"the largest index": func(q *raft.AppendEntriesRequest) { q.PrevLogEntry, q.Entries[0].Index = 1<<64-1, 0 },
		"a later term":      func(q *raft.AppendEntriesRequest) { q.Entries[1].Term = 3 },
		"an unknown type":   func(q *raft.AppendEntriesRequest) { q.Entries[0].Type = 77 },
		"no configuration":  func(q *raft.AppendEntriesRequest) { q.Entries[1].Data = []byte{1} },
		"empty membership":  func(q *raft.AppendEntriesRequest) { q.Entries[1].Data = nil },
		"an outdated type":  func(q *raft.AppendEntriesRequest) { q.Entries[0].Type = raft.LogAddPeerDeprecated },
	} {
		q := good
		q.Entries = nil
		for _, l := range good.Entries {
			same := *l
			q.Entries = append(q.Entries, &same)
		}
		change(&q)
		answers := make(chan raft.RPCResponse, 1)
		passed := f.filter(&raft.RPC{Command: &q, RespChan: answers})
		if passed != (what == "") {
			t.Errorf("%q: passed is %t", what, passed)
		}
		if !passed {
			if a := <-answers; !errors.Is(a.Error, errEntries) {
				t.Errorf("%q is answered with %v", what, a.Error)
			}
		}
	}
}
