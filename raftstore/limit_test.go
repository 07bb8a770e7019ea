package raftstore

import (
	"testing"

	"github.com/hashicorp/raft"
)

// A request has at most maxRequestBytes, or one entry.
func TestRequestsAreBounded(t *testing.T) {
	of := func(sizes ...int) *raft.AppendEntriesRequest {
		q := &raft.AppendEntriesRequest{}
		for _, n := range sizes {
			q.Entries = append(q.Entries, &raft.Log{Data: make([]byte, n)})
		}
		return q
	}
	const most = maxRequestBytes
	for what, c := range map[string]struct {
		request *raft.AppendEntriesRequest
		want    int
	}{
		"none":             {of(), 0},
		"one":              {of(10), 1},
		"one large":        {of(2 * most), 1},
		"as many as fit":   {of(most/2, most/2), 2},
		"one too many":     {of(most/2, most/2, 1), 2},
		"large at the end": {of(1, 1, most), 2},
		"large first":      {of(most+1, 1), 1},
	} {
		if limitBytes(c.request); len(c.request.Entries) != c.want {
			t.Errorf("%s: %d entries, want %d", what, len(c.request.Entries), c.want)
		}
	}
}

// A peer that could not store entries is told from one whose log is another, or
// that is in another term.
func TestNotStored(t *testing.T) {
	q := &raft.AppendEntriesRequest{Term: 4, Entries: []*raft.Log{{}}}
	for what, c := range map[string]struct {
		reply raft.AppendEntriesResponse
		want  bool
	}{
		"not stored":   {raft.AppendEntriesResponse{Term: 4}, true},
		"stored":       {raft.AppendEntriesResponse{Term: 4, Success: true}, false},
		"another log":  {raft.AppendEntriesResponse{Term: 4, NoRetryBackoff: true}, false},
		"another term": {raft.AppendEntriesResponse{Term: 5}, false},
	} {
		if got := notStored(q, &c.reply); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
