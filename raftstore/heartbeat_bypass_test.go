package raftstore

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// nothing is an FSM without a state.
type nothing struct{}

func (nothing) Apply(entries []Committed) []any { return make([]any, len(entries)) }
func (nothing) Snapshot() Snapshot              { return Snapshot{} }
func (nothing) Restore([]byte) error            { return nil }

// isolated returns a replica of n1 that can't reach any other, and its disk.
func isolated(t *testing.T, heartbeat time.Duration, voters ...string) (*Group, *journaltest.Gate) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n, err := NewNetwork(NetworkOptions{
		Node: "n1", Cluster: "c", Key: testKey, Listener: listener,
		Resolve: func(string) (string, error) { return "", errors.New("it is down") },
	})
	if err != nil {
		t.Fatal(err)
	}
	fs := journaltest.NewGate()
	log := openLog(t, t.TempDir(), wal.Options{FS: fs})
	g, err := Open(Options{Node: "n1", Voters: voters, Log: log, FSM: nothing{}, Network: n, ID: 1, HeartbeatTimeout: heartbeat})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closed := make(chan error, 1)
		go func() { closed <- errors.Join(g.Close(), n.Close()) }()
		if err := within(t, "the replica is closed", closed); err != nil {
			t.Error(err)
		}
	})
	return g, fs
}

// within receives from a channel. It fails the test if nothing arrives within a
// minute: a replica whose goroutines deadlock neither answers nor closes.
func within[T any](t *testing.T, what string, from <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-from:
	case <-time.After(time.Minute):
		t.Errorf("timed out waiting: %s", what)
	}
	return got
}

// eventually polls until a condition holds.
var eventually = testkit.Until

// A heartbeat of a newer term has no effect while a leader's main goroutine is
// writing: the entries being written are of the term that the leader led.
func TestANewerTermWaitsForRaftsMainGoroutine(t *testing.T) {
	g, fs := isolated(t, 100*time.Millisecond, "n1")
	eventually(t, "the replica leads", func() bool { return g.Leading() && g.raft.AppliedIndex() > 0 })
	term, last := g.Term(), g.raft.LastIndex()

	held, open := fs.Hold()
	defer open(nil)
	barrier := g.raft.Barrier(0) // raft's main goroutine waits until it is synced
	<-held

	n := g.network.endpoint.network
	var answers []byte
	answered := make(chan bool, 1)
	go func() { answered <- n.handleNow(&answers, 1, "n2", 1, term+5) }()
	eventually(t, "the heartbeat is handled", func() bool { return len(answered) > 0 || !g.Leading() })
	if !g.Leading() || g.Term() != term {
		t.Fatalf("raft became %v of term %d while its main goroutine was blocked", g.raft.State(), g.Term())
	}
	if within(t, "the heartbeat is handled", answered) {
		t.Fatalf("the heartbeat bypassed raft's main goroutine: %x", answers)
	}
	fromMain := make(chan []byte, 1)
	go func() { fromMain <- n.handleInMain(1, "n2", 1, term+5) }()
	open(nil)
	passed := make(chan error, 1)
	go func() { passed <- barrier.Error() }()
	if err := within(t, "the barrier", passed); err != nil && !errors.Is(err, raft.ErrLeadershipLost) {
		t.Errorf("the barrier: %v", err)
	}
	if a := within(t, "the main goroutine's reply", fromMain); len(a) != heartbeatReplySize || a[4] != heartbeatAccepted {
		t.Errorf("the reply is %x", a)
	}
	eventually(t, "the newer term", func() bool { return g.Term() >= term+5 })
	var l raft.Log
	if err := g.log.GetLog(last+1, &l); err != nil || l.Term != term {
		t.Errorf("entry %d has term %d, %v: the leader of term %d wrote it", last+1, l.Term, err, term)
	}
}

// Heartbeats arrive while the replica starts elections. Its term never
// decreases, and heartbeats of the leader that it follows bypass raft's main
// goroutine.
func TestHeartbeatsDoNotRaceWithElections(t *testing.T) {
	g, _ := isolated(t, 20*time.Millisecond, "n1", "n2", "n3")
	n := g.network.endpoint.network
	var bypassed atomic.Int64 // heartbeats that bypassed raft's main goroutine
	deadline := time.Now().Add(testkit.Patience)
	rounds := testkit.Sized(8, 40, 400)
	for round := 0; round < rounds || bypassed.Load() == 0; round++ {
		if round >= rounds && time.Now().After(deadline) {
			t.Fatalf("after %d rounds %d heartbeats bypassed raft's main goroutine", round, bypassed.Load())
		}
		term := g.Term() + 1
		if a := n.handleInMain(1, "n2", 1, term); len(a) == 0 || a[4] != heartbeatAccepted {
			continue // the replica was starting an election
		}
		var sending sync.WaitGroup
		done := make(chan struct{})
		before := bypassed.Load()
		for range 3 {
			sending.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					var answers []byte
					if n.handleNow(&answers, 1, "n2", 1, term) {
						bypassed.Add(1)
					}
				}
			})
		}
		eventually(t, "a heartbeat bypasses raft's main goroutine, or an election", func() bool {
			return bypassed.Load() > before || g.Term() > term || g.raft.State() != raft.Follower
		})
		if round%2 == 0 {
			g.campaign(t.Context())
		} else {
			n.handleInMain(1, "n3", 1, term+1)
		}
		eventually(t, "another term or an election", func() bool {
			return g.Term() > term || g.raft.State() != raft.Follower
		})
		close(done)
		sending.Wait()
		if err := g.Halted(); err != nil {
			t.Fatal(err)
		}
	}
}

// Raft's main goroutine is about to stop following: it has cleared its leader,
// but has not changed its term and state yet. From then on no heartbeat
// bypasses it.
func TestNoHeartbeatBypassesAnElectionThatBegins(t *testing.T) {
	g, _ := isolated(t, time.Second, "n1", "n2", "n3")
	e := g.network.endpoint
	n, term := e.network, g.Term()+1
	if a := n.handleInMain(1, "n2", 1, term); len(a) == 0 || a[4] != heartbeatAccepted {
		t.Fatalf("the reply to the first heartbeat is %x", a)
	}
	var answers []byte
	if !n.handleNow(&answers, 1, "n2", 1, term) || answers[4] != heartbeatAccepted {
		t.Fatal("a heartbeat of the current leader did not bypass the main goroutine")
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	g.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if l, ok := o.Data.(raft.LeaderObservation); ok && l.LeaderID == "" {
			e.bypass.revoke(o) // in case this observer is called first
			once.Do(func() { close(begun); <-goOn })
		}
		return false
	}))
	defer close(goOn)
	go g.campaign(t.Context())
	<-begun
	if state := g.raft.State(); state != raft.Follower || g.Term() != term {
		t.Fatalf("the replica is already %v in term %d", state, g.Term())
	}
	for _, from := range []string{"n2", "n3"} {
		if answers = nil; n.handleNow(&answers, 1, from, 1, term) {
			t.Errorf("a heartbeat of %s bypassed the main goroutine: %x", from, answers)
		}
	}
}
