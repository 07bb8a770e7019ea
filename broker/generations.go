package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/wal"
)

// Raft assumes that no voter forgets what it has acknowledged. A data directory
// that is replaced by an older copy of itself, from a snapshot of a virtual
// machine or from a backup, breaks that, and nothing in the directory shows it.
// So every directory counts its generations, each with a random nonce. A
// generation begins before the node first connects to another node after its
// start, and then every generationTime. A node that meets no other node begins
// none. Otherwise an older copy could begin so many alone that the generation
// which its peers remember is no longer among those that it shows.
//
// At the beginning of every connection, nodes tell each other their newest
// generations. Each remembers the newest generation of the other, durably,
// before anything else is sent. A directory that does not show the generation
// that it has shown before is an older copy. Both ends then refuse the
// connection, and with it all votes and entries.
//
// A node learns that it runs on an older copy from the nodes that refuse it:
// they tell it what they remember. It then refuses all connections, and stops
// when a majority of the voters on the facts has said so. So each node that
// meets an older copy connects to it once more, to tell it. The facts spread
// this knowledge: they hold the last start of each member.
//
// An older copy from within the same generation is not recognized, and neither
// is one that no other node remembers: see docs/adr/0016.

// generationTime is how long a generation lasts. An older copy is recognized if
// it was made before the current generation.
const generationTime = time.Minute

// reportInTransit is how long a report may take to arrive. Within that time,
// another connection may bring a newer one first.
const reportInTransit = 10 * time.Second

// generations keeps what the node knows of its own directory and of the
// others'. Its methods run on the goroutines of connections, and on run's.
type generations struct {
	*identity
	services
	store      *wal.Store
	peerRecord *wal.PeerRecord
	peers      *peers
	facts      func() cluster.Facts                         // none while the node is starting
	handshake  func(ctx context.Context, node string) error // connects to another node
	reconnect  func()                                       // closes the connections to other nodes

	state  sync.Mutex // guards what follows
	own    []wal.Generation
	due    bool                 // the next generation begins before the next report
	start  uint64               // number of the first generation of this run of the node, 0 if none has begun
	raised map[string]time.Time // by the id of another directory: when it last showed a newer generation
	denied map[string]string    // by node: why it considers this directory an older copy
	logged map[string]bool      // ids of older copies that were logged
	untold map[string]bool      // nodes that run on an older copy and are to be told
	proven map[string]bool      // ids of directories that have shown that they are not older copies
}

// open reads the directory's generations, and what it remembers of others.
func (g *generations) open(s *wal.Store) (err error) {
	g.raised, g.denied, g.logged, g.proven = map[string]time.Time{}, map[string]string{}, map[string]bool{}, map[string]bool{}
	g.untold = map[string]bool{}
	g.store, g.due = s, true
	if g.peerRecord, err = s.PeerRecord(); err != nil {
		return err
	}
	g.own, err = s.Generations()
	return err
}

// refresh begins a generation if one is due. If the disk has no room for it,
// the last one continues.
func (g *generations) refresh() {
	g.state.Lock()
	defer g.state.Unlock()
	if !g.due {
		return
	}
	g.due = false // after a failure, the next attempt is when the next generation is due
	own, err := g.store.BeginGeneration()
	if err != nil {
		g.log.Warn("could not begin a generation of the data directory: older copies made since the last one are not recognized", "err", err)
		return
	}
	g.own = own
	if g.start == 0 {
		g.start = own[len(own)-1].Number
	}
}

// report returns the report that this node sends to another one.
func (g *generations) report(peer string) []byte {
	g.refresh()
	c := generationReport{id: g.store.Identity().NodeID, yours: remembered{id: g.idOf(peer)}}
	if c.yours.id != "" {
		seen, _ := g.peerRecord.Get(c.yours.id)
		c.yours.newest, c.yours.older = seen.Newest, seen.Older
		if at := g.recordedStart(c.yours.id); at.Number > seen.Newest.Number {
			c.yours.newest = at
		}
	}
	g.state.Lock()
	defer g.state.Unlock()
	c.own, c.start = g.own, g.start
	return c.encode()
}

// idOf returns the id of a node's directory, "" if this node does not know it.
func (g *generations) idOf(peer string) string {
	if m := g.facts().Nodes[peer]; m.ID != "" {
		return m.ID
	}
	q, _ := g.peers.get(peer)
	return q.NodeID
}

// recordedStart returns the last start of a directory that the facts have.
func (g *generations) recordedStart(id string) (at wal.Generation) {
	s, known := g.facts().Starts[id]
	if !known || at.Nonce.UnmarshalText([]byte(s.Nonce)) != nil {
		return wal.Generation{}
	}
	at.Number = s.Number
	return at
}

// check checks the report of another node. If it returns an error, the
// connection is refused.
func (g *generations) check(peer string, b []byte) error {
	c, err := decodeGenerationReport(b)
	if err != nil {
		return err
	}
	if c.yours.id == g.store.Identity().NodeID {
		g.onRemembered(peer, c.yours)
	}
	if err := g.examine(peer, c); err != nil {
		return err
	}
	g.state.Lock()
	defer g.state.Unlock()
	if len(g.denied) > 0 {
		return fmt.Errorf("%w: %s", ErrOlderCopy, g.whyLocked())
	}
	return nil
}

// examine compares the generations that another directory shows with the one
// that it had shown before, and remembers the newest.
func (g *generations) examine(peer string, c generationReport) error {
	recorded := g.recordedStart(c.id)
	var newest wal.Generation
	if n := len(c.own); n > 0 {
		newest = c.own[n-1]
	}
	err := g.peerRecord.Update(c.id, func(seen wal.Seen) (wal.Seen, error) {
		why := follows(c.own, seen.Newest, seen.Older)
		if why == nil {
			why = follows(c.own, recorded, seen.Older)
		}
		if why != nil {
			if g.overtaken(c.id) {
				return seen, errOvertaken
			}
			seen.Node, seen.Older = peer, true
			return seen, fmt.Errorf("%w: %s: %w", ErrOlderCopy, peer, why)
		}
		if newest.Number >= seen.Newest.Number {
			if newest.Number > seen.Newest.Number {
				g.raise(c.id)
			}
			seen.Node, seen.Newest, seen.Start, seen.Older = peer, newest, c.began(), false
		}
		return seen, nil
	})
	g.state.Lock()
	g.proven[c.id] = err == nil || errors.Is(err, wal.ErrNoSpace)
	g.state.Unlock()
	switch {
	case errors.Is(err, ErrOlderCopy):
		g.reportOlderCopy(peer, c.id, err)
	case errors.Is(err, wal.ErrNoSpace): // it is remembered until this process ends
		g.log.Warn("no room to store another node's generation", "node", peer, "err", err)
		return nil
	}
	return err
}

// vouched reports whether a directory has shown, since this node started, that
// it is not an older copy. Only then may what its node says of its log count
// against this node's log: a majority may consist of nodes that have lost what
// this one has.
func (g *generations) vouched(id string) bool {
	g.state.Lock()
	defer g.state.Unlock()
	return g.proven[id]
}

var errOvertaken = errors.New("the node's generation report is out of date: connect again")

// raise records that a directory has shown a newer generation now.
func (g *generations) raise(id string) {
	g.state.Lock()
	defer g.state.Unlock()
	g.raised[id] = time.Now()
}

// overtaken reports whether a directory has shown a newer generation within
// reportInTransit, so that an older report may arrive after a newer one.
func (g *generations) overtaken(id string) bool {
	g.state.Lock()
	defer g.state.Unlock()
	at, ok := g.raised[id]
	return ok && time.Since(at) < reportInTransit
}

// reportOlderCopy logs and publishes, once for each directory, that it is an
// older copy.
func (g *generations) reportOlderCopy(peer, id string, err error) {
	g.state.Lock()
	first := !g.logged[id]
	g.logged[id], g.untold[peer] = true, true
	g.state.Unlock()
	if first {
		g.log.Error("a node runs on an older copy of its data directory: it has lost what it acknowledged since, and is refused; "+
			"start it on its newer directory, or remove it, give it an empty one and add it again (docs/guide.md, \"Older copies of a directory\")",
			"peer", peer, "err", err)
		g.advise("older_copy", map[string]any{"name": peer, "because": err.Error()})
	}
}

// onRemembered handles what another node remembers of this node's directory.
func (g *generations) onRemembered(peer string, r remembered) {
	g.state.Lock()
	err := follows(g.own, r.newest, r.older)
	_, denied := g.denied[peer]
	if err == nil {
		delete(g.denied, peer)
	} else {
		g.denied[peer] = err.Error()
	}
	voters := g.facts().MetaVoters()
	denials := 0
	for name := range g.denied {
		if slices.Contains(voters, name) {
			denials++
		}
	}
	why := g.whyLocked()
	g.state.Unlock()
	switch {
	case err == nil:
	case denials > len(voters)/2:
		g.fail(fmt.Errorf("%w: %s. It lacks what this node has acknowledged since it was made, and must not vote. "+
			"Remove the node from the cluster, give it an empty data directory, and add it again; or start it on the right directory", ErrOlderCopy, why))
	case !denied:
		g.log.Error("the data directory is an older copy of itself: this node serves nothing; "+
			"start it on the newer one, or remove the node from the cluster, give it an empty directory and add it again "+
			"(docs/guide.md, \"Older copies of a directory\")", "says", peer, "because", why)
		g.background(g.reconnect)
	}
}

// whyLocked returns which nodes consider this directory an older copy, and why,
// "" if none does. state is held.
func (g *generations) whyLocked() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(g.denied)) {
		all = append(all, fmt.Sprintf("%s says that %s", name, g.denied[name]))
	}
	return strings.Join(all, "; ")
}

// why returns which nodes consider this directory an older copy, and why, "" if
// none does.
func (g *generations) why() string {
	if g == nil {
		return ""
	}
	g.state.Lock()
	defer g.state.Unlock()
	return g.whyLocked()
}

// run begins generations and connects to the other members to show them, until
// ctx ends.
func (g *generations) run(ctx context.Context) {
	next := time.NewTicker(generationTime)
	defer next.Stop()
	retry := time.NewTicker(announceInterval)
	defer retry.Stop()
	refused := map[string]string{}
	for met := map[string]bool{}; ; {
		for _, name := range g.takeUntold() {
			delete(met, name)
		}
		for _, name := range g.facts().Names() {
			if name == g.opts.Name || met[name] || !g.peers.alive(name, time.Now()) {
				continue
			}
			err := g.handshake(ctx, name)
			met[name] = err == nil
			if errors.Is(err, raftstore.ErrRefused) && err.Error() != refused[name] {
				refused[name] = err.Error()
				g.log.Warn("a node refuses this one", "node", name, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		case <-next.C:
			g.state.Lock()
			g.due = true
			g.state.Unlock()
			met = map[string]bool{}
		}
	}
}

// takeUntold returns the nodes that are to be told that they run on an older
// copy. It returns each of them once.
func (g *generations) takeUntold() []string {
	g.state.Lock()
	defer g.state.Unlock()
	names := slices.Collect(maps.Keys(g.untold))
	clear(g.untold)
	return names
}

// startToRecord returns a command that records a member's newest start in the
// facts; false if they have the starts of all members.
func (g *generations) startToRecord(f cluster.Facts) (c cluster.Command, ok bool) {
	for _, name := range f.Names() {
		id := f.Nodes[name].ID
		at := g.lastStart(id)
		if at.Number > f.Starts[id].Number {
			nonce, _ := at.Nonce.MarshalText()
			return cluster.Command{
				Kind: cluster.NoteStart, Node: name, Member: cluster.Member{ID: id}, Start: cluster.Start{Number: at.Number, Nonce: string(nonce)},
			}, true
		}
	}
	return c, false
}

// lastStart returns the last start of a directory that this node knows of.
func (g *generations) lastStart(id string) wal.Generation {
	if id != g.store.Identity().NodeID {
		seen, _ := g.peerRecord.Get(id)
		if seen.Older {
			return wal.Generation{}
		}
		return seen.Start
	}
	g.state.Lock()
	defer g.state.Unlock()
	return generationReport{own: g.own, start: g.start}.began()
}
