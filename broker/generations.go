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

// Raft rests on it that no voter forgets what it has acknowledged. A data
// directory that is put back from an older copy of itself, by a snapshot of a
// virtual machine or from a backup, is such a voter, and nothing in it shows
// that. So every directory counts its generations, each with a random nonce. One
// begins before the node first connects to another after its start, and again
// every generationTime. A node that meets nobody begins none: an older copy could
// otherwise begin so many alone that what peers remember is no longer among
// those it shows. Nodes tell each other their newest generations at the beginning of every
// connection, and remember, durably and before anything else passes, the newest
// of each other. A directory that does not show what it had shown before is an
// older copy. The connection is refused at both ends, and with it all votes and
// entries.
//
// The node itself hears it from whoever refuses it, as what that one remembers.
// It then refuses all connections, and when a majority of the voters on the
// facts has said so, it stops. What one node knows the facts spread: they hold
// the last start of each member.
//
// An older copy from within the same generation is not recognized, nor one that
// nobody is left to recognize: see docs/adr/0016.

// generationTime is how long a generation lasts: older copies are recognized
// that were made before the current one.
const generationTime = time.Minute

// staleClaims is how long claims may be on their way that another connection has
// overtaken.
const staleClaims = 10 * time.Second

// generations are what the node knows of its own directory and of others'.
type generations struct {
	*identity
	services
	store     *wal.Store
	witness   *wal.Witness
	peers     *peers
	facts     func() cluster.Facts // none while the node is starting
	greet     func(ctx context.Context, node string) error
	reconnect func() // breaks the connections to other nodes

	state  sync.Mutex // guards what follows
	own    []wal.Generation
	due    bool                 // the next is to begin before anything is claimed
	start  uint64               // number of the first that began since this start, 0 if none has
	raised map[string]time.Time // when another directory last showed a newer one, by its id
	denied map[string]string    // by nodes that know this directory as an older copy, and why
	told   map[string]bool      // ids of older copies that were complained about
	shown  map[string]bool      // ids of directories that have shown their generations, and are no older copies
}

// open reads what the directory holds of its generations.
func (g *generations) open(s *wal.Store) (err error) {
	g.raised, g.denied, g.told, g.shown = map[string]time.Time{}, map[string]string{}, map[string]bool{}, map[string]bool{}
	g.store, g.due = s, true
	if g.witness, err = s.Witness(); err != nil {
		return err
	}
	g.own, err = s.Generations()
	return err
}

// refresh begins a generation if one is due. Without room on the disk there is none,
// and the last one goes on.
func (g *generations) refresh() {
	g.state.Lock()
	defer g.state.Unlock()
	if !g.due {
		return
	}
	g.due = false // a failure is not tried again before the next is due
	own, err := g.store.BeginGeneration()
	if err != nil {
		g.log.Warn("no new generation of the data directory: older copies of it are not recognized for longer", "err", err)
		return
	}
	g.own = own
	if g.start == 0 {
		g.start = own[len(own)-1].Number
	}
}

// claims returns what this node says to another one.
func (g *generations) claims(peer string) []byte {
	g.refresh()
	c := claims{id: g.store.Identity().NodeID, yours: remembered{id: g.idOf(peer)}}
	if c.yours.id != "" {
		seen, _ := g.witness.Get(c.yours.id)
		c.yours.newest, c.yours.older = seen.Newest, seen.Older
		if at := g.notedStart(c.yours.id); at.Number > seen.Newest.Number {
			c.yours.newest = at
		}
	}
	g.state.Lock()
	defer g.state.Unlock()
	c.own, c.start = g.own, g.start
	return c.encode()
}

// idOf returns the id of a node's directory, "" if it is not known.
func (g *generations) idOf(peer string) string {
	if m := g.facts().Nodes[peer]; m.ID != "" {
		return m.ID
	}
	q, _ := g.peers.get(peer)
	return q.NodeID
}

// notedStart returns the last start of a directory that the facts know.
func (g *generations) notedStart(id string) (at wal.Generation) {
	s, known := g.facts().Starts[id]
	if !known || at.Nonce.UnmarshalText([]byte(s.Nonce)) != nil {
		return wal.Generation{}
	}
	at.Number = s.Number
	return at
}

// check judges what another node claims. Its error refuses the connection.
func (g *generations) check(peer string, b []byte) error {
	c, err := decodeClaims(b)
	if err != nil {
		return err
	}
	if c.yours.id == g.store.Identity().NodeID {
		g.hear(peer, c.yours)
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

// examine compares what another directory shows with what it had shown before,
// and remembers it.
func (g *generations) examine(peer string, c claims) error {
	noted := g.notedStart(c.id)
	var newest wal.Generation
	if n := len(c.own); n > 0 {
		newest = c.own[n-1]
	}
	err := g.witness.Update(c.id, func(seen wal.Seen) (wal.Seen, error) {
		why := follows(c.own, seen.Newest, seen.Older)
		if why == nil {
			why = follows(c.own, noted, seen.Older)
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
	g.shown[c.id] = err == nil || errors.Is(err, wal.ErrNoSpace)
	g.state.Unlock()
	switch {
	case errors.Is(err, ErrOlderCopy):
		g.complain(peer, c.id, err)
	case errors.Is(err, wal.ErrNoSpace): // it is remembered until the process ends
		g.log.Warn("no room to write down what another node has shown", "node", peer, "err", err)
		return nil
	}
	return err
}

// vouched reports whether a directory has shown, since this node started, that it
// is no older copy. What a node says of its log counts against this one only
// then: a majority may consist of those that have lost what this one has.
func (g *generations) vouched(id string) bool {
	g.state.Lock()
	defer g.state.Unlock()
	return g.shown[id]
}

var errOvertaken = errors.New("what the node claims is out of date by now: connect again")

func (g *generations) raise(id string) {
	g.state.Lock()
	defer g.state.Unlock()
	g.raised[id] = time.Now()
}

// overtaken reports whether a directory has shown a newer generation just now,
// so that claims from before may still be on their way.
func (g *generations) overtaken(id string) bool {
	g.state.Lock()
	defer g.state.Unlock()
	at, ok := g.raised[id]
	return ok && time.Since(at) < staleClaims
}

// complain says once of a directory that it is an older copy, and has its node
// hear why it is refused.
func (g *generations) complain(peer, id string, err error) {
	g.state.Lock()
	first := !g.told[id]
	g.told[id] = true
	g.state.Unlock()
	if first {
		g.log.Error("a node runs on an older copy of its data directory: it has lost what it acknowledged since, and is refused; "+
			"start it on its newer directory, or remove it, give it an empty one and add it again (docs/guide.md, \"Older copies of a directory\")",
			"peer", peer, "err", err)
		g.advise("older_copy", map[string]any{"name": peer, "because": err.Error()})
	}
}

// hear takes what another node remembers of this one's directory.
func (g *generations) hear(peer string, r remembered) {
	g.state.Lock()
	err := follows(g.own, r.newest, r.older)
	_, was := g.denied[peer]
	if err == nil {
		delete(g.denied, peer)
	} else {
		g.denied[peer] = err.Error()
	}
	voters := g.facts().MetaVoters()
	saying := 0
	for name := range g.denied {
		if slices.Contains(voters, name) {
			saying++
		}
	}
	why := g.whyLocked()
	g.state.Unlock()
	switch {
	case err == nil:
	case saying > len(voters)/2:
		g.fail(fmt.Errorf("%w: %s. It lacks what this node has acknowledged since it was made, and must not vote. "+
			"Remove the node from the cluster, give it an empty data directory, and add it again; or start it on the right directory", ErrOlderCopy, why))
	case !was:
		g.log.Error("the data directory is an older copy of itself: this node takes no part; "+
			"start it on the newer one, or remove the node from the cluster, give it an empty directory and add it again "+
			"(docs/guide.md, \"Older copies of a directory\")", "says", peer, "because", why)
		g.background(g.reconnect)
	}
}

// whyLocked says who denies this directory, and why, "" if nobody does. state is
// held.
func (g *generations) whyLocked() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(g.denied)) {
		all = append(all, fmt.Sprintf("%s says that %s", name, g.denied[name]))
	}
	return strings.Join(all, "; ")
}

// why says which nodes deny this directory, "" if none does.
func (g *generations) why() string {
	if g == nil {
		return ""
	}
	g.state.Lock()
	defer g.state.Unlock()
	return g.whyLocked()
}

// run has generations begin, and tells the other members of each, until ctx ends.
func (g *generations) run(ctx context.Context) {
	next := time.NewTicker(generationTime)
	defer next.Stop()
	retry := time.NewTicker(helloInterval)
	defer retry.Stop()
	refused := map[string]string{}
	for greeted := map[string]bool{}; ; {
		for _, name := range g.facts().Names() {
			if name == g.opts.Name || greeted[name] || !g.peers.alive(name, time.Now()) {
				continue
			}
			err := g.greet(ctx, name)
			greeted[name] = err == nil
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
			greeted = map[string]bool{}
		}
	}
}

// notes returns a command that notes a start of a member which the facts don't
// know yet; false says that they know all.
func (g *generations) notes(f cluster.Facts) (c cluster.Command, ok bool) {
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

// lastStart returns the last start of a directory that this node knows.
func (g *generations) lastStart(id string) wal.Generation {
	if id != g.store.Identity().NodeID {
		seen, _ := g.witness.Get(id)
		if seen.Older {
			return wal.Generation{}
		}
		return seen.Start
	}
	g.state.Lock()
	defer g.state.Unlock()
	return claims{own: g.own, start: g.start}.began()
}
