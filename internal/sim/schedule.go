package sim

import (
	"bufio"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a kind of fault.
type Kind string

// The kinds. Those that last end after the fault's For.
const (
	PowerCut  Kind = "power-cut"  // of a machine: it loses what was not synced, and falls silent
	Blackout  Kind = "blackout"   // the power of all machines
	KillNode  Kind = "kill"       // the process; what it has written stays
	Block     Kind = "block"      // what one node sends to another does not arrive
	Partition Kind = "partition"  // a node and all others don't reach each other
	Reset     Kind = "reset"      // the connections between two nodes break
	SlowLink  Kind = "slow-link"  // what one node sends to another takes longer
	SlowDisk  Kind = "slow-disk"  // syncs take longer
	FailDisk  Kind = "fail-disk"  // an operation of a disk fails and has no effect, most often a sync
	TornWrite Kind = "torn-write" // an operation of a disk, most often a write, has a part of its effect and fails
	Stall     Kind = "stall"      // a machine: no sync ends and no message arrives
	Clock     Kind = "clock"      // of a machine: it jumps
	Freeze    Kind = "freeze"     // a stall during which leaders don't notice that their lease has ended
	Lag       Kind = "lag"        // what a node is sent arrives later and later, and then what it sends does not arrive
)

// The operations, which are up to the [App].
const (
	Transfer Kind = "transfer" // of leadership
	Trim     Kind = "trim"     // of the head of a node's log
	Move     Kind = "move"     // of a replica to another node
	Rebuild  Kind = "rebuild"  // of a replica, from the others
	Replace  Kind = "replace"  // of a node by one with an empty disk
	Restart  Kind = "restart"  // of a process, in good order
	Rollback Kind = "rollback" // of a disk to what it was when the process began
)

// Leader stands for the node that leads at the time of a fault.
const Leader = "leader"

// Fault is one line of a schedule.
type Fault struct {
	At   time.Duration // since the beginning
	Kind Kind
	Node string // a name or Leader; "" for Blackout
	To   string // the other node of Block, Reset and SlowLink, else ""
	// For is of Clock how far it is then ahead of one that is MaxSkew behind, and
	// of Lag how late messages are in the end: it lasts twice as long.
	For time.Duration
}

// MaxSkew is how far a node's clock is ahead or behind at most.
const MaxSkew = 1500 * time.Millisecond

// String returns the fault as a line of a script, such as
// "1.5s block leader n2 for 300ms".
func (f Fault) String() string {
	words := []string{f.At.String(), string(f.Kind)}
	for _, w := range []string{f.Node, f.To} {
		if w != "" {
			words = append(words, w)
		}
	}
	if f.For > 0 {
		words = append(words, "for", f.For.String())
	}
	return strings.Join(words, " ")
}

// Schedule is a list of faults, in the order of their times.
type Schedule []Fault

// String returns the script.
func (s Schedule) String() string {
	var b strings.Builder
	for _, f := range s {
		b.WriteString(f.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// ParseSchedule reads a script: a fault a line. Empty lines, and lines that
// begin with #, are skipped.
func ParseSchedule(script string) (s Schedule, err error) {
	lines := bufio.NewScanner(strings.NewReader(script))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		f, err := parseFault(words)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		s = append(s, f)
	}
	slices.SortStableFunc(s, byTime)
	return s, lines.Err()
}

func byTime(a, b Fault) int { return cmp.Compare(a.At, b.At) }

func parseFault(words []string) (f Fault, err error) {
	if len(words) < 2 {
		return f, fmt.Errorf("a fault has a time and a kind")
	}
	if f.At, err = time.ParseDuration(words[0]); err != nil {
		return f, err
	}
	f.Kind = Kind(words[1])
	if _, ok := AllWeights[f.Kind]; !ok {
		return f, fmt.Errorf("no kind of fault")
	}
	words = words[2:]
	if n := len(words); n >= 2 && words[n-2] == "for" {
		if f.For, err = time.ParseDuration(words[n-1]); err != nil {
			return f, err
		}
		words = words[:n-2]
	}
	if len(words) > 0 {
		f.Node = words[0]
	}
	if len(words) > 1 {
		f.To = words[1]
	}
	return f, nil
}

// Weights says how often each kind occurs, relative to the others.
type Weights map[Kind]int

// ReplicaWeights are those of simulations that have one replica on each node.
var ReplicaWeights = Weights{
	PowerCut: 6, Blackout: 2, KillNode: 3, Block: 6, Partition: 5, Reset: 3, SlowLink: 3, SlowDisk: 5, Transfer: 6, Trim: 4,
	FailDisk: 2, TornWrite: 1, Stall: 2, Freeze: 5, Lag: 4, Clock: 3, Rebuild: 3, Restart: 3,
}

// AllWeights are those of simulations of whole nodes. They have every kind.
var AllWeights = Weights{
	PowerCut: 6, Blackout: 2, KillNode: 3, Block: 6, Partition: 5, Reset: 3, SlowLink: 3, SlowDisk: 5, Transfer: 6, Trim: 4,
	FailDisk: 2, TornWrite: 1, Stall: 2, Freeze: 4, Lag: 3, Clock: 3, Rollback: 1, Move: 4, Rebuild: 2, Replace: 1, Restart: 3,
}

// NewSchedule returns a schedule of faults within a time, on average one each
// spacing. Leaders are hit as often as all others together.
func NewSchedule(seed uint64, nodes []string, within, spacing time.Duration, weights Weights) (s Schedule) {
	rng := rand.New(rand.NewPCG(seed, 1))
	total := 0
	kinds := make([]Kind, 0, len(weights))
	for k, w := range weights {
		kinds, total = append(kinds, k), total+w
	}
	slices.Sort(kinds)
	pick := func() Kind {
		at := rng.IntN(total)
		for _, k := range kinds {
			if at -= weights[k]; at < 0 {
				return k
			}
		}
		panic("unreachable")
	}
	for at := time.Duration(0); ; {
		at += between(rng, spacing/10, 2*spacing)
		if at >= within {
			slices.SortStableFunc(s, byTime)
			return s
		}
		f := newFault(rng, at, pick(), nodes)
		s = append(s, f)
		if next, ok := followUp(rng, f, nodes, weights); ok {
			s = append(s, next)
		}
	}
}

// followUp returns what sometimes follows on a fault, when most is at stake: a
// crash while a trim is not behind a snapshot yet, or when what was held back
// has just arrived; a replica that is rebuilt while another one is behind.
func followUp(rng *rand.Rand, f Fault, nodes []string, weights Weights) (next Fault, ok bool) {
	crash := []Kind{PowerCut, KillNode}[rng.IntN(2)]
	soon := between(rng, 0, 80*time.Millisecond)
	next = newFault(rng, f.At+soon, crash, nodes)
	next.Node = f.Node
	choice := rng.IntN(4)
	switch f.Kind {
	case Trim:
		return next, choice < 2
	case Partition, Block, Stall, Freeze:
		if choice == 0 && weights[Rebuild] > 0 {
			return newFault(rng, f.At+f.For*3/4, Rebuild, nodes), true
		}
		next.At = f.At + f.For + soon
		return next, choice == 1
	}
	return next, false
}

func newFault(rng *rand.Rand, at time.Duration, kind Kind, nodes []string) Fault {
	f := Fault{At: at, Kind: kind, Node: Leader}
	a := rng.IntN(len(nodes))
	b := (a + 1 + rng.IntN(len(nodes)-1)) % len(nodes)
	if rng.IntN(2) == 0 {
		f.Node = nodes[a]
	}
	switch kind {
	case Blackout:
		f.Node, f.For = "", between(rng, 50*time.Millisecond, 500*time.Millisecond)
	case PowerCut, KillNode, Rollback:
		f.For = between(rng, 20*time.Millisecond, 2*time.Second)
	case Block, SlowLink:
		f.To, f.For = nodes[b], between(rng, 50*time.Millisecond, 3*time.Second)
		if rng.IntN(2) == 0 {
			f.Node, f.To = f.To, f.Node
		}
	case Reset:
		f.To = nodes[b]
	case Clock:
		f.For = between(rng, time.Millisecond, 2*MaxSkew)
	case Freeze, Lag:
		f.For = between(rng, 700*time.Millisecond, 2*time.Second)
	case Partition, SlowDisk, Stall:
		f.For = between(rng, 50*time.Millisecond, 3*time.Second)
	}
	return f
}

// between returns a time between two, rounded so that it prints well.
func between(rng *rand.Rand, low, high time.Duration) time.Duration {
	return (low + time.Duration(rng.Int64N(int64(high-low)))).Round(time.Millisecond)
}
