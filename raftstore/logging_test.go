package raftstore

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// While a node was away, each group that it belonged to logged that, with each
// of raft's messages.
func TestGroupsLogTogetherThatAPeerIsUnreached(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	var closing atomic.Bool
	together := &outages{}
	refused := errors.New("connection refused")
	for group := range 3 {
		l := raftLogger(slog.New(slog.NewTextHandler(&log, nil)).With("partition", group), &closing, together)
		l.Error("failed to pipeline appendEntries", "peer", raft.Server{ID: "n3", Address: "n3"}, "error", io.EOF)
		l.Error("failed to heartbeat to", "peer", raft.ServerAddress("n3"), "backoff time", time.Second, "error", refused)
		l.Error("failed to make requestVote RPC", "target", raft.Server{ID: "n3", Address: "n3"}, "error", refused, "term", 7)
	}
	raftLogger(slog.New(slog.NewTextHandler(&log, nil)), &closing, together).Error("failed to heartbeat to", "peer", raft.ServerAddress("n2"), "error", refused)
	if lines := strings.Count(log.String(), "\n"); lines != 2 || strings.Count(log.String(), `err="connection refused"`) != 2 || !strings.Contains(log.String(), "node=n3") || !strings.Contains(log.String(), "node=n2") {
		t.Errorf("logged\n%s", &log)
	}
}

func TestOutagesAreLoggedLessAndLess(t *testing.T) {
	t.Parallel()
	o, began := &outages{}, time.Now()
	var logged []time.Duration
	total := 0
	for at := time.Duration(0); at < time.Hour; at += time.Second {
		if ok, withheld := o.due("n3", began.Add(at)); ok {
			logged = append(logged, at)
			total += withheld + 1
		}
	}
	if len(logged) > 7 || logged[0] != 0 || logged[1] != minOutageWait || total < 1800 {
		t.Errorf("logged at %v, which stand for %d", logged, total)
	}
	again := began.Add(time.Hour + minOutageWait)
	if ok, _ := o.due("n3", again); !ok {
		t.Error("a new outage is not logged")
	}
	if ok, _ := o.due("n3", again.Add(time.Second)); ok {
		t.Error("it is logged twice")
	}
}
