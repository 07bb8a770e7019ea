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

// lonely returns a replica of n1 that can reach no other, and its disk.
func lonely(t *testing.T, heartbeat time.Duration, voters ...string) (*Group, *journaltest.Gate) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n, err := NewNetwork(NetworkOptions{
		Node: "n1", Cluster: "c", Key: testKey, Listener: listener,
		Resolve: func(string) (string, error) { return "", errors.New("it is away") },
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
		if err := within(t, "it is closed", closed); err != nil {
			t.Error(err)
		}
	})
	return g, fs
}

// within returns what arrives on a channel. It fails the test if nothing does:
// a replica whose goroutines wait for each other neither answers nor ends.
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

// While a leader's main goroutine writes, a heartbeat of a newer term changes
// nothing: what is being written is of the term that the leader led.
func TestANewerTermWaitsForRaftsMainGoroutine(t *testing.T) {
	g, fs := lonely(t, 100*time.Millisecond, "n1")
	eventually(t, "it leads", func() bool { return g.Leading() && g.raft.AppliedIndex() > 0 })
	term, last := g.Term(), g.raft.LastIndex()

	held, open := fs.Hold()
	defer open(nil)
	barrier := g.raft.Barrier(0) // it is synced before raft goes on
	<-held

	n := g.network.endpoint.network
	var answers []byte
	answered := make(chan bool, 1)
	go func() { answered <- n.handleNow(&answers, 1, "n2", 1, term+5) }()
	eventually(t, "the heartbeat is handled", func() bool { return len(answered) > 0 || !g.Leading() })
	if !g.Leading() || g.Term() != term {
		t.Fatalf("beside its main goroutine raft became %v of term %d", g.raft.State(), g.Term())
	}
	if within(t, "the heartbeat is handled", answered) {
		t.Fatalf("it was answered beside raft's main goroutine: %x", answers)
	}
	through := make(chan []byte, 1)
	go func() { through <- n.handleInMain(1, "n2", 1, term+5) }()
	open(nil)
	passed := make(chan error, 1)
	go func() { passed <- barrier.Error() }()
	if err := within(t, "the barrier", passed); err != nil && !errors.Is(err, raft.ErrLeadershipLost) {
		t.Errorf("the barrier: %v", err)
	}
	if a := within(t, "an answer through the main goroutine", through); len(a) != heartbeatReplySize || a[4] != heartbeatAccepted {
		t.Errorf("the answer is %x", a)
	}
	eventually(t, "the newer term", func() bool { return g.Term() >= term+5 })
	var l raft.Log
	if err := g.log.GetLog(last+1, &l); err != nil || l.Term != term {
		t.Errorf("entry %d is of term %d, %v: it was written by the leader of term %d", last+1, l.Term, err, term)
	}
}

// Heartbeats arrive while the replica stands for election. Its term never goes
// back, and those of the leader that it follows are answered beside raft's main
// goroutine.
func TestHeartbeatsDoNotRaceWithElections(t *testing.T) {
	g, _ := lonely(t, 20*time.Millisecond, "n1", "n2", "n3")
	n := g.network.endpoint.network
	var beside atomic.Int64 // heartbeats answered beside raft's main goroutine
	deadline := time.Now().Add(testkit.Patience)
	rounds := testkit.Sized(8, 40, 400)
	for round := 0; round < rounds || beside.Load() == 0; round++ {
		if round >= rounds && time.Now().After(deadline) {
			t.Fatalf("after %d rounds %d heartbeats were answered beside raft's main goroutine", round, beside.Load())
		}
		term := g.Term() + 1
		if a := n.handleInMain(1, "n2", 1, term); len(a) == 0 || a[4] != heartbeatAccepted {
			continue // it stood for election just then
		}
		var hammering sync.WaitGroup
		done := make(chan struct{})
		before := beside.Load()
		for range 3 {
			hammering.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					var answers []byte
					if n.handleNow(&answers, 1, "n2", 1, term) {
						beside.Add(1)
					}
				}
			})
		}
		eventually(t, "a heartbeat beside raft's main goroutine, or an election", func() bool {
			return beside.Load() > before || g.Term() > term || g.raft.State() != raft.Follower
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
		hammering.Wait()
		if err := g.Halted(); err != nil {
			t.Fatal(err)
		}
	}
}

// Raft's main goroutine is about to stop following: it has forgotten its
// leader, and its term and state are still the old ones. No heartbeat is
// answered beside it from then on.
func TestNoHeartbeatIsAnsweredBesideAnElectionThatBegins(t *testing.T) {
	g, _ := lonely(t, time.Second, "n1", "n2", "n3")
	e := g.network.endpoint
	n, term := e.network, g.Term()+1
	if a := n.handleInMain(1, "n2", 1, term); len(a) == 0 || a[4] != heartbeatAccepted {
		t.Fatalf("the first heartbeat is answered with %x", a)
	}
	var answers []byte
	if !n.handleNow(&answers, 1, "n2", 1, term) || answers[4] != heartbeatAccepted {
		t.Fatal("a heartbeat of the leader that is followed was not answered beside raft")
	}
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	g.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if l, ok := o.Data.(raft.LeaderObservation); ok && l.LeaderID == "" {
			e.bypass.revoke(o) // whichever of the two observers comes first
			once.Do(func() { close(begun); <-goOn })
		}
		return false
	}))
	defer close(goOn)
	go g.campaign(t.Context())
	<-begun
	if state := g.raft.State(); state != raft.Follower || g.Term() != term {
		t.Fatalf("it is %v in term %d already", state, g.Term())
	}
	for _, from := range []string{"n2", "n3"} {
		if answers = nil; n.handleNow(&answers, 1, from, 1, term) {
			t.Errorf("a heartbeat of %s was answered: %x", from, answers)
		}
	}
}
