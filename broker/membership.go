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

// A node does not stop because one other node says that it is not a member. It
// asks the nodes that vote on the facts, as it knows them, and stops when a
// majority of them says so too. Some of them may have been removed since. Then
// a majority of the voters on the newest facts that one of the others has is
// enough. Until the node knows, it is not ready, and answers no request that
// other nodes can answer.
//
// Facts that are older than those with which the node was added can't tell. All
// voters may have such facts for a moment, if they start together: a log's last
// entries are applied once a leader has confirmed that they were committed. So
// the data directory has the version of the facts with which the node joined.

// memberQuestion is a question to another node.
type memberQuestion struct {
	Nonce string `json:"nonce"` // the answer repeats it
	// Node and ID are the node that may be a member.
	Node string `json:"node"`
	ID   string `json:"id"`
}

// memberAnswer is the answer to a question.
type memberAnswer struct {
	Nonce  string `json:"nonce"`
	Member bool   `json:"member"`
	Facts  uint64 `json:"facts"` // the version that says so
	// Voters are the nodes that vote on these facts, with the ids of their
	// directories.
	Voters map[string]string `json:"voters,omitempty"`
}

// membership finds out whether this node is still a member of its cluster. A
// goroutine, resolveSuspicion, runs while there is a suspicion.
type membership struct {
	*identity
	dir        string // the data directory
	facts      func() (facts cluster.Facts, changed <-chan struct{}, open bool)
	request    func(ctx context.Context, subject string, body any) ([]byte, error) // to other nodes
	wake       func()                                                              // called when a suspicion begins or ends
	quit       <-chan struct{}
	fail       func(error)
	failed     func() error
	background func(func()) // runs a function that Close waits for

	suspicion  atomic.Pointer[string] // why the node may no longer be a member
	suspicions loglimit.Repeats
}

// check suspects a removal if a member's facts do not list this node: it may
// have been removed while it was away.
func (m *membership) check(a announcement) {
	facts, _, open := m.facts()
	if !open || len(a.Members) == 0 { // a node that is starting lists no members
		return
	}
	if a.Facts < max(facts.Version, m.joinedAt()) || slices.Contains(a.Members, m.opts.Name) {
		return
	}
	m.suspectRemoval(a.Name + " says that this node is not a member of the cluster")
}

// checkOwnFacts suspects a removal if this node's own facts do not list it. The
// entry that removes a node is not sent to it, but later ones may be.
func (m *membership) checkOwnFacts() {
	facts, _, _ := m.facts()
	member, is := facts.Nodes[m.opts.Name]
	if facts.Version > m.joinedAt() && (!is || member.ID != m.directory()) {
		m.suspectRemoval("the cluster's facts don't list this node")
	}
}

// suspectRemoval begins to ask the voters on the facts whether this node is a
// member.
func (m *membership) suspectRemoval(why string) {
	if !m.suspicion.CompareAndSwap(nil, &why) {
		return
	}
	if ok, withheld := m.suspicions.Allow(why, time.Now()); ok {
		m.log.Warn("this node may have been removed: the voters on the facts are asked", "because", why, "not_logged_before", withheld)
	}
	m.wake()
	m.background(m.resolveSuspicion)
}

// removalSuspected reports whether the node may no longer be a member.
func (m *membership) removalSuspected() bool { return m.suspicion.Load() != nil }

// errMaybeRemoved is returned when a log is not fetched because the node may
// have been removed.
var errMaybeRemoved = errors.New("this node may have been removed")

// maxSuspicionWait is the longest wait between two rounds of asking.
const maxSuspicionWait = 10 * announceInterval

// resolveSuspicion asks the voters until a majority says that this node is not
// a member, or all that answer say that it is one.
func (m *membership) resolveSuspicion() {
	defer m.wake()
	defer m.suspicion.Store(nil)
	wait := announceInterval
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
		if wait > announceInterval { // not at once: not all voters know yet of a removal just decided
			m.reportSuspicion(v)
		}
		select {
		case <-m.quit:
			return
		case <-changed:
			wait = announceInterval
		case <-time.After(wait):
			wait = min(2*wait, maxSuspicionWait)
		}
	}
}

// reportSuspicion logs why this node cannot know yet whether it was removed.
func (m *membership) reportSuspicion(v votes) {
	why := fmt.Sprintf("this node was removed, or its cluster is gone: %s; if it was removed, stop it and delete %s", v, m.dir)
	m.suspicion.Store(&why)
	if ok, withheld := m.suspicions.Allow(why, time.Now()); ok {
		m.log.Warn(why, "not_logged_before", withheld)
	}
}

// votes are the voters' answers about this node's membership.
type votes struct {
	deny, confirm, silent []string
	newest                memberAnswer // the denial with the newest facts
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

// majorityOfOthers returns how many of the voters, not counting this node, make
// a majority of all. It returns their number if they make none without this
// node.
func majorityOfOthers(voters []string, self string) int {
	others := len(voters)
	if slices.Contains(voters, self) {
		others--
	}
	return max(1, min(len(voters)/2+1, others))
}

// askNewest asks the voters on the newest facts that an answer has shown, and
// adds their answers. It reports whether a majority of them, at least two
// nodes, says that this node is not a member, and none that it is.
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

// votersOf returns the members that vote on facts, with the ids of their
// directories.
func votersOf(facts cluster.Facts) map[string]string {
	all := map[string]string{}
	for _, name := range facts.MetaVoters() {
		all[name] = facts.Nodes[name].ID
	}
	return all
}

// askVoters asks each of some nodes whether this node is a member. It ignores
// answers by facts that are older than a version.
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
			q := memberQuestion{Nonce: newInstance(), Node: m.opts.Name, ID: m.directory()}
			var a memberAnswer
			from, err := m.askNode(ctx, m.names.Admin("node", name, "member"), q, &a)
			mu.Lock()
			defer mu.Unlock()
			list := &v.silent
			switch {
			case err != nil:
				m.log.Debug("no answer whether this node is a member", "from", name, "err", err)
			case a.Nonce != q.Nonce || from.name != name || from.id != id || a.Facts < max(version, m.joinedAt()):
				m.noteRejected("answer", name, nil)
			case a.Member:
				list = &v.confirm
			default:
				list = &v.deny
				if a.Facts >= v.newest.Facts {
					v.newest = a
				}
			}
			*list = append(*list, name)
		})
	}
	asking.Wait()
	for _, names := range [][]string{v.deny, v.confirm, v.silent} {
		slices.Sort(names)
	}
	return v
}

// askTime bounds the wait for other nodes' answers.
const askTime = 2 * time.Second

// onMember answers a node that asks whether it is a member.
func (m *membership) onMember(_ context.Context, asked *natslink.Message) (any, error) {
	e, err := openEnvelope(asked.Payload)
	if err != nil || e.cluster != m.clusterID() || !m.proved(e, asked.Subject) {
		return nil, errUnproved
	}
	var q memberQuestion
	if err := json.Unmarshal(e.body, &q); err != nil || len(q.Nonce) > 64 {
		return nil, errUnproved
	}
	facts, _, _ := m.facts()
	member, is := facts.Nodes[q.Node]
	return m.envelope(answerTo(asked.Subject), memberAnswer{
		Nonce: q.Nonce, Member: is && member.ID == q.ID, Facts: facts.Version, Voters: votersOf(facts),
	}), nil
}

// errUnproved refuses a request that is not from a node of the cluster.
var errUnproved = subjects.Errorf(subjects.BadRequest, "only nodes of this cluster are answered here")

// answerTo returns the subject that the answer to a request is signed for. It
// differs from the request's, so that an answer can't be used as a request.
func answerTo(subject string) string { return subject + " answered" }

var errUnsigned = errors.New("the answer is not signed by a node of this cluster")

// askNode sends a request to another node and decodes its answer, which must be
// signed.
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
