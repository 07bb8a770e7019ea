package broker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

const (
	// steadyTime is how long a node has to be there before it is given
	// something that would be missed if it went again.
	steadyTime = 2 * time.Second
	// stepTime bounds one change of a group's members.
	stepTime = 5 * time.Second
	// handOverPause keeps a leader from handing over right after it began, or
	// after it failed to.
	handOverPause = 3 * time.Second
)

// handOvers says when leadership may be handed over for balance: at once when
// the facts have changed, which somebody wanted, and else after a while.
func handOvers(version uint64) func(version uint64) bool {
	last := time.Now()
	return func(now uint64) bool {
		if now == version && time.Since(last) < handOverPause {
			return false
		}
		version, last = now, time.Now()
		return true
	}
}

// members are what a group's leader reads and changes of its group.
type members interface {
	Status() raftstore.Status
	AddReplica(ctx context.Context, name string) error
	Promote(ctx context.Context, name string) error
	Demote(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
}

// wantedGroup is what the members of a Raft group are to be, and what brings
// it about: its leader compares, again and again, and takes one step at a time.
type wantedGroup struct {
	group  members
	self   string
	voters map[string]bool // who is to be a member, and whether with a vote
	// transfer hands leadership over, or begins to.
	transfer func(ctx context.Context, to string) error
	// preferred is who is to lead.
	preferred string
	report    func(name string) (groupReport, bool) // of a living node's replica
	steady    func(name string) bool
	// handing is told when leadership is about to be handed over for no need
	// but balance; false says that it is too early to.
	handing func() bool
}

// step takes the next step, if there is one; done says that there is none to
// take at present. The order is what keeps a group able to commit: a replica
// is added without a vote, gets one when it has caught up, and nobody goes
// before all who are to stay can vote.
func (w wantedGroup) step(ctx context.Context) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	status := w.group.Status()
	if status.State != "leader" {
		return false, raftstore.ErrNotLeader
	}
	have := map[string]bool{}
	for _, r := range status.Replicas {
		have[r.Name] = r.Voter
	}
	for _, step := range []func(context.Context, map[string]bool) (bool, error){
		w.demoteFenced, w.add, w.promote, w.demote, w.remove, w.handOver,
	} {
		if taken, err := step(ctx, have); taken || err != nil {
			return false, err
		}
	}
	return true, nil
}

// add takes in who is missing, once it has a replica to be one with.
func (w wantedGroup) add(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(w.voters) {
		if _, member := have[name]; member {
			continue
		}
		if _, there := w.report(name); there {
			return true, w.group.AddReplica(ctx, name)
		}
	}
	return false, nil
}

// promote gives votes to who has caught up.
func (w wantedGroup) promote(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(w.voters) {
		voter, member := have[name]
		if !member || voter || !w.voters[name] {
			continue
		}
		if r, there := w.report(name); there && r.Fenced == "" && caughtUp(r) {
			return true, w.group.Promote(ctx, name)
		}
	}
	return false, nil
}

// promoteLag is how many entries a replica may be behind for being given a vote,
// or the leadership.
const promoteLag = 512

// caughtUp reports whether a replica was level when it said what it has.
func caughtUp(r groupReport) bool { return r.Applied > 0 && r.behind <= promoteLag }

// demoteFenced takes the vote of a replica that does not have the same log,
// so that it can be rebuilt.
func (w wantedGroup) demoteFenced(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(have) {
		if r, there := w.report(name); have[name] && there && r.Fenced != "" && name != w.self && w.canSpare(have, name) {
			return true, w.group.Demote(ctx, name)
		}
	}
	return false, nil
}

// demote takes the vote of who is to follow only.
func (w wantedGroup) demote(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(have) {
		if vote, wanted := w.voters[name]; have[name] && wanted && !vote && w.complete(have) && w.canSpare(have, name) {
			if name == w.self {
				return true, w.transfer(ctx, w.successor(have))
			}
			return true, w.group.Demote(ctx, name)
		}
	}
	return false, nil
}

// remove takes out who is not to be a member. Its leader hands over first.
func (w wantedGroup) remove(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(have) {
		if _, wanted := w.voters[name]; wanted {
			continue
		}
		switch {
		case have[name] && !(w.complete(have) && w.canSpare(have, name)):
		case name != w.self:
			return true, w.group.Remove(ctx, name)
		default:
			if to := w.successor(have); to != "" {
				return true, w.transfer(ctx, to)
			}
		}
	}
	return false, nil
}

// complete reports whether everybody who is to have a vote has one.
func (w wantedGroup) complete(have map[string]bool) bool {
	for name, vote := range w.voters {
		if vote && !have[name] {
			return false
		}
	}
	return true
}

// canSpare reports whether the voters without one are able to commit: a
// majority of them is there.
func (w wantedGroup) canSpare(have map[string]bool, without string) bool {
	voters, there := 0, 0
	for name, vote := range have {
		if !vote || name == without {
			continue
		}
		voters++
		if _, ok := w.report(name); ok || name == w.self {
			there++
		}
	}
	return voters > 0 && there > voters/2
}

// successor is who could lead: one that is to have a vote, has it and is
// there; "" if nobody.
func (w wantedGroup) successor(have map[string]bool) string {
	candidates := names(have)
	if have[w.preferred] {
		candidates = slices.Insert(candidates, 0, w.preferred)
	}
	for _, name := range candidates {
		if r, there := w.report(name); have[name] && w.voters[name] && name != w.self && there && r.Fenced == "" {
			return name
		}
	}
	return ""
}

// handOver lets the preferred replica lead when it has been there for a while.
func (w wantedGroup) handOver(ctx context.Context, have map[string]bool) (bool, error) {
	if w.preferred == w.self || !have[w.preferred] || !w.steady(w.preferred) {
		return false, nil
	}
	r, there := w.report(w.preferred)
	if !there || r.Fenced != "" || !caughtUp(r) || !w.handing() {
		return false, nil
	}
	if err := w.transfer(ctx, w.preferred); err != nil {
		return true, fmt.Errorf("hand over to %s: %w", w.preferred, err)
	}
	return true, nil
}

// reconcile brings the partition's group to what the facts say, while this
// node leads it.
func (p *partition) reconcile(ctx context.Context) {
	tick := time.NewTicker(helloInterval)
	defer tick.Stop()
	facts, _ := p.host.facts()
	handing := handOvers(facts.Version)
	for {
		facts, changed := p.host.facts()
		want := map[string]bool{}
		for _, name := range facts.Followers(p.id) {
			want[name] = false
		}
		for _, name := range facts.Voters(p.id) {
			want[name] = true
		}
		now := time.Now()
		p.updateDiskBlocked()
		w := wantedGroup{
			group: p.group, transfer: p.requestTransfer, self: p.host.name, voters: want, preferred: p.leaderWithRoom(facts.Voters(p.id), now),
			report: func(name string) (groupReport, bool) {
				if !p.host.peers.alive(name, now) {
					return groupReport{}, false
				}
				return p.host.peers.report(name, p.id, now)
			},
			steady: func(name string) bool {
				q, _ := p.host.peers.get(name)
				return q.Ready && p.host.peers.steady(name, steadyTime, now)
			},
			handing: func() bool { return handing(facts.Version) },
		}
		done, err := w.step(ctx)
		if err != nil && ctx.Err() == nil {
			p.log.Debug("the group is not as it should be yet", "err", err)
		}
		again := tick.C
		if done && !p.host.clustered {
			again = nil // there is no other node whose state could change
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}
