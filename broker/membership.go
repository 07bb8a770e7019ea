package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
)

// What one node says ends no process. A node that hears that it is no member asks
// those that vote on the facts, as it knows them, and stops when a majority says so
// too. Some of those may be gone since; then a majority of the voters that one of the
// others names will do. Until then the node is not ready, and answers nothing that
// others can answer.

// question is what a node asks of another.
type question struct {
	Nonce string `json:"nonce"` // the answer repeats it
	// Node and ID are the node whose membership is asked for.
	Node string `json:"node"`
	ID   string `json:"id"`
}

// answer is the other's.
type answer struct {
	Nonce  string `json:"nonce"`
	Member bool   `json:"member"`
	Facts  uint64 `json:"facts"` // the version that says so
	// Voters are those that vote on these facts, and the ids of their directories.
	Voters map[string]string `json:"voters,omitempty"`
}

// membership finds out whether this node still is a member of its cluster.
type membership struct {
	*identity
	dir        string // the data directory
	facts      func() (facts cluster.Facts, changed <-chan struct{}, open bool)
	request    func(ctx context.Context, subject string, body any) ([]byte, error) // to other nodes
	wake       func()                                                              // called when doubt begins and ends
	quit       <-chan struct{}
	fail       func(error)
	failed     func() error
	background func(func()) // runs a function that Close waits for

	joinedAt uint64                 // see founding
	doubt    atomic.Pointer[string] // why the node may be no member any more
	doubts   loglimit.Repeats
}

// check looks whether a member has this node among the members: it may have been
// removed while it was away.
func (m *membership) check(h hello) {
	facts, _, open := m.facts()
	if !open || len(h.Members) == 0 { // a node that is starting knows of nobody yet
		return
	}
	if h.Facts < max(facts.Version, m.joinedAt) || slices.Contains(h.Members, m.opts.Name) {
		return
	}
	m.beginDoubt(h.Name + " says that this node is no member of the cluster")
}

// checkOwnFacts begins to doubt when the facts that this node has don't list it:
// it is not told of its own removal, but of what came after.
func (m *membership) checkOwnFacts() {
	facts, _, _ := m.facts()
	member, is := facts.Nodes[m.opts.Name]
	if facts.Version > m.joinedAt && (!is || member.ID != m.directory()) {
		m.beginDoubt("the cluster's facts don't list this node")
	}
}

// beginDoubt has the voters on the facts asked whether this node is a member.
func (m *membership) beginDoubt(why string) {
	if !m.doubt.CompareAndSwap(nil, &why) {
		return
	}
	if ok, withheld := m.doubts.Allow(why, time.Now()); ok {
		m.log.Warn("this node may have been removed: the voters on the facts are asked", "because", why, "not_logged_before", withheld)
	}
	m.wake()
	m.background(m.settleDoubt)
}

// doubted reports whether the node may be no member any more.
func (m *membership) doubted() bool { return m.doubt.Load() != nil }

// errDoubt is why nothing is fetched from others.
var errDoubt = errors.New("this node may have been removed")

// maxDoubtWait is the longest wait between two rounds of asking.
const maxDoubtWait = 10 * helloInterval

// settleDoubt asks until a majority has said that this node is no member, or all
// that answer say that it is one.
func (m *membership) settleDoubt() {
	defer m.wake()
	defer m.doubt.Store(nil)
	wait := helloInterval
	for m.failed() == nil {
		facts, changed, _ := m.facts()
		v := m.askVoters(votersOf(facts), facts.Version)
		denied := len(v.deny) >= majorityOfOthers(facts.MetaVoters(), m.opts.Name)
		if !denied && len(v.deny) > 0 && len(v.confirm) == 0 {
			denied = m.askNewest(&v)
		}
		switch {
		case denied:
			m.fail(fmt.Errorf("%w: %s", ErrRemoved, v))
			return
		case len(v.deny) == 0 && len(v.confirm) > 0:
			return
		}
		if wait > helloInterval { // a removal that has just been decided is not known to all
			m.stayInDoubt(v)
		}
		select {
		case <-m.quit:
			return
		case <-changed:
			wait = helloInterval
		case <-time.After(wait):
			wait = min(2*wait, maxDoubtWait)
		}
	}
}

// stayInDoubt says what keeps this node from knowing whether it was removed.
func (m *membership) stayInDoubt(v votes) {
	why := fmt.Sprintf("this node was removed, or its cluster is gone: %s; if it was removed, stop it and delete %s", v, m.dir)
	m.doubt.Store(&why)
	if ok, withheld := m.doubts.Allow(why, time.Now()); ok {
		m.log.Warn(why, "not_logged_before", withheld)
	}
}

// votes are what the voters on the facts say of this node's membership.
type votes struct {
	deny, confirm, silent []string
	newest                answer // the denial with the newest facts
}

func (v votes) String() string {
	var all []string
	for _, part := range []struct {
		names     []string
		one, many string
	}{
		{v.deny, "says so", "say so"}, {v.confirm, "says that it is a member", "say that it is a member"},
		{v.silent, "does not answer", "do not answer"},
	} {
		switch last := len(part.names) - 1; last {
		case -1:
		case 0:
			all = append(all, part.names[0]+" "+part.one)
		default:
			all = append(all, strings.Join(part.names[:last], ", ")+" and "+part.names[last]+" "+part.many)
		}
	}
	return strings.Join(all, ", ")
}

// majorityOfOthers is how many of the voters but this node make a majority of all,
// or all of them, where it takes this node to make one.
func majorityOfOthers(voters []string, self string) int {
	others := len(voters)
	if slices.Contains(voters, self) {
		others--
	}
	return max(1, min(len(voters)/2+1, others))
}

// askNewest asks those that vote on the newest facts, as a voter that this node knows
// names them, and adds what they say. It reports whether a majority of them denies
// that this node is a member: more than one node, and none says otherwise.
func (m *membership) askNewest(v *votes) bool {
	voters, denials := v.newest.Voters, 0
	rest := maps.Clone(voters)
	for _, name := range slices.Concat(v.deny, v.silent) {
		if _, votes := rest[name]; votes && slices.Contains(v.deny, name) {
			denials++
		}
		delete(rest, name)
	}
	more := m.askVoters(rest, v.newest.Facts)
	denials += len(more.deny)
	v.deny, v.confirm, v.silent = append(v.deny, more.deny...), more.confirm, append(v.silent, more.silent...)
	return denials > 1 && denials > len(voters)/2 && len(v.confirm) == 0
}

// votersOf are the members that vote on facts, and the ids of their directories.
func votersOf(facts cluster.Facts) map[string]string {
	all := map[string]string{}
	for _, name := range facts.MetaVoters() {
		all[name] = facts.Nodes[name].ID
	}
	return all
}

// askVoters asks each of the others of some nodes whether this one is a member. Facts
// that are older than a version count for nothing.
func (m *membership) askVoters(voters map[string]string, version uint64) (v votes) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for name, id := range voters {
		if name == m.opts.Name {
			continue
		}
		asking.Go(func() {
			q := question{Nonce: newInstance(), Node: m.opts.Name, ID: m.directory()}
			var a answer
			from, err := m.askNode(ctx, m.names.Admin("node", name, "member"), q, &a)
			mu.Lock()
			defer mu.Unlock()
			said := &v.silent
			switch {
			case err != nil:
				m.log.Debug("no answer about the own membership", "from", name, "err", err)
			case a.Nonce != q.Nonce || from.name != name || from.id != id || a.Facts < max(version, m.joinedAt):
				m.distrust("answer", name, nil)
			case a.Member:
				said = &v.confirm
			default:
				said = &v.deny
				if a.Facts >= v.newest.Facts {
					v.newest = a
				}
			}
			*said = append(*said, name)
		})
	}
	asking.Wait()
	for _, names := range [][]string{v.deny, v.confirm, v.silent} {
		slices.Sort(names)
	}
	return v
}

// askTime bounds waiting for another node's answer.
const askTime = 2 * time.Second

// onMember answers a node that asks whether it is a member.
func (m *membership) onMember(_ context.Context, asked *natslink.Message) (any, error) {
	e, err := openEnvelope(asked.Payload)
	if err != nil || e.cluster != m.clusterID() || !m.proved(e, asked.Subject) {
		return nil, errUnproved
	}
	var q question
	if err := json.Unmarshal(e.body, &q); err != nil || len(q.Nonce) > 64 {
		return nil, errUnproved
	}
	facts, _, _ := m.facts()
	member, is := facts.Nodes[q.Node]
	return m.envelope(answerTo(asked.Subject), answer{
		Nonce: q.Nonce, Member: is && member.ID == q.ID, Facts: facts.Version, Voters: votersOf(facts),
	}), nil
}

// errUnproved refuses what only nodes may ask.
var errUnproved = subjects.Errorf(subjects.BadRequest, "only nodes of this cluster are answered here")

// answerTo is the subject that an answer to a request is signed for: it can't be
// taken for a request.
func answerTo(subject string) string { return subject + " answered" }

var errUnsigned = errors.New("the answer is not signed by a node of this cluster")

// askNode asks another node and takes its answer, which must be signed.
func (m *membership) askNode(ctx context.Context, subject string, body, answer any) (envelope, error) {
	b, err := m.request(ctx, subject, body)
	if err != nil {
		return envelope{}, err
	}
	e, err := openEnvelope(b)
	if err != nil {
		return e, err
	}
	if !m.proved(e, answerTo(subject)) {
		return e, errUnsigned
	}
	return e, json.Unmarshal(e.body, answer)
}
