package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/subjects"
)

// What one node says ends no process. A node that hears that it is no member asks
// those that vote on the facts, as it knows them, and stops when a majority says so
// too; until then it is not ready.

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
}

// checkMembership looks whether a member takes this node for one: it may have been
// removed while it was away.
func (n *Node) checkMembership(h hello) {
	n.mu.Lock()
	meta := n.meta
	n.mu.Unlock()
	if meta == nil || len(h.Members) == 0 { // a node that is starting knows of nobody yet
		return
	}
	facts, _ := meta.current()
	if h.Facts < max(facts.Version, n.joinedAt) || slices.Contains(h.Members, n.opts.Name) {
		return
	}
	why := fmt.Sprintf("%s says that this node is no member of the cluster", h.Name)
	if !n.doubt.CompareAndSwap(nil, &why) {
		return
	}
	n.log.Warn("this node may have been removed: the voters on the facts are asked", "because", why)
	n.begin(n.settleDoubt)
}

// settleDoubt asks until a majority has said that this node is no member, or all
// that answer say that it is one.
func (n *Node) settleDoubt() {
	defer n.doubt.Store(nil)
	for n.Err() == nil {
		facts, _ := n.meta.current()
		deny, confirm := n.askVoters(facts)
		switch voters := facts.MetaVoters(); {
		case len(deny) >= majorityOfOthers(voters, n.opts.Name):
			n.fail(fmt.Errorf("%w: %s say so", ErrRemoved, strings.Join(deny, " and ")))
			return
		case len(deny) == 0 && len(confirm) > 0:
			return
		}
		select {
		case <-n.quit:
			return
		case <-time.After(helloInterval):
		}
	}
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

// askVoters asks each of the others that vote on the facts whether this node is a
// member.
func (n *Node) askVoters(facts cluster.Facts) (deny, confirm []string) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, name := range facts.MetaVoters() {
		if name == n.opts.Name {
			continue
		}
		asking.Go(func() {
			q := question{Nonce: newInstance(), Node: n.opts.Name, ID: n.store.Identity().NodeID}
			var a answer
			from, err := n.askNode(ctx, n.names.Admin("node", name, "member"), q, &a)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				n.log.Debug("no answer about the own membership", "from", name, "err", err)
			case a.Nonce != q.Nonce || from.name != name || from.id != facts.Nodes[name].ID || a.Facts < max(facts.Version, n.joinedAt):
				n.distrust("answer", name, nil)
			case a.Member:
				confirm = append(confirm, name)
			default:
				deny = append(deny, name)
			}
		})
	}
	asking.Wait()
	slices.Sort(deny)
	return deny, confirm
}

// askTime bounds waiting for another node's answer.
const askTime = 2 * time.Second

// onMember answers a node that asks whether it is a member.
func (n *Node) onMember(_ context.Context, m *message) (any, error) {
	e, err := openEnvelope(m.payload)
	if err != nil || e.cluster != n.clusterID() || !n.proved(e, m.subject) {
		return nil, errUnproved
	}
	var q question
	if err := json.Unmarshal(e.body, &q); err != nil || len(q.Nonce) > 64 {
		return nil, errUnproved
	}
	facts, _ := n.meta.current()
	member, is := facts.Nodes[q.Node]
	return n.envelope(answerTo(m.subject), answer{Nonce: q.Nonce, Member: is && member.ID == q.ID, Facts: facts.Version}), nil
}

// errUnproved refuses what only nodes may ask.
var errUnproved = subjects.Errorf(subjects.BadRequest, "only nodes of this cluster are answered here")

// answerTo is the subject that an answer to a request is signed for: it can't be
// taken for a request.
func answerTo(subject string) string { return subject + " answered" }

var errUnsigned = errors.New("the answer is not signed by a node of this cluster")

// askNode asks another node and takes its answer, which must be signed.
func (n *Node) askNode(ctx context.Context, subject string, body, answer any) (envelope, error) {
	m, err := n.request(ctx, subject, body)
	if err != nil {
		return envelope{}, err
	}
	e, err := openEnvelope(m)
	if err != nil {
		return e, err
	}
	if !n.proved(e, answerTo(subject)) {
		return e, errUnsigned
	}
	return e, json.Unmarshal(e.body, answer)
}
