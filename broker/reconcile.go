package broker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cantuslog/cantus/raftstore"
)

const (
	// steadyTime is how long a node must have been up before leadership is
	// moved to it, so that a node that comes and goes does not cause failovers.
	steadyTime = 2 * time.Second
	// stepTime bounds one change of a group's members.
	stepTime = 5 * time.Second
	// transferPause is the least time from the beginning of a leadership, or
	// from a failed transfer, to the next transfer for balance.
	transferPause = 3 * time.Second
)

// transferLimit returns a function that reports whether leadership may be
// transferred for balance: at once when the facts have a new version, since an
// operator may wait for that, and otherwise once in transferPause.
func transferLimit(version uint64) func(version uint64) bool {
	last := time.Now()
	return func(now uint64) bool {
		if now == version && time.Since(last) < transferPause {
			return false
		}
		version, last = now, time.Now()
		return true
	}
}

// members are the parts of a group that its leader reads and changes. Tests
// replace them.
type members interface {
	Status() raftstore.Status
	AddReplica(ctx context.Context, name string) error
	Promote(ctx context.Context, name string) error
	Demote(ctx context.Context, name string) error
	Remove(ctx context.Context, name string) error
	Reachable(name string) bool
}

// desiredGroup is the membership that a Raft group is to have. The group's
// leader compares it with the actual one again and again, and takes one step at
// a time towards it.
type desiredGroup struct {
	group  members
	self   string
	voters map[string]bool // the members, and whether they vote
	// transfer transfers leadership, or begins to.
	transfer func(ctx context.Context, to string) error
	// preferred is the member that is to lead.
	preferred string
	report    func(name string) (groupReport, bool) // of a living node's replica
	steady    func(name string) bool
	// mayTransfer is called before a transfer of leadership for mere balance,
	// and reports whether it may take place now.
	mayTransfer func() bool
}

// step takes the next step. It reports whether there was none to take. The
// order of the steps keeps the group able to commit: a replica is added without
// a vote and gets one when it has caught up, and none is removed before all
// that stay can vote.
func (w desiredGroup) step(ctx context.Context) (done bool, err error) {
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
		w.demoteFenced, w.add, w.promote, w.demote, w.remove, w.transferToPreferred,
	} {
		if taken, err := step(ctx, have); taken || err != nil {
			return false, err
		}
	}
	return true, nil
}

// add adds a missing member, once its node has opened its replica.
func (w desiredGroup) add(ctx context.Context, have map[string]bool) (bool, error) {
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

// promote gives a vote to a member that has caught up.
func (w desiredGroup) promote(ctx context.Context, have map[string]bool) (bool, error) {
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

// maxLag is how many entries a replica may be behind and still count as caught
// up. Only then does it get a vote or the leadership.
const maxLag = 512

// caughtUp reports whether a replica had caught up when it sent its report.
func caughtUp(r groupReport) bool { return r.Applied > 0 && r.behind <= maxLag }

// votersCaughtUp returns the voters that a group can go on with if they are a
// majority, as its leader, self, knows them: it hears and reaches them, and
// they have caught up and have its log. report returns what another node
// reports of its replica.
func votersCaughtUp(replicas []raftstore.Replica, self string, report func(name string) (groupReport, bool), reachable func(name string) bool) (names []string) {
	for _, replica := range replicas {
		if !replica.Voter {
			continue
		}
		r, there := report(replica.Name)
		if replica.Name == self || there && caughtUp(r) && r.Fenced == "" && !r.Halted && reachable(replica.Name) {
			names = append(names, replica.Name)
		}
	}
	return names
}

// demoteFenced takes the vote from a replica whose log differs from the
// others', so that it can be rebuilt.
func (w desiredGroup) demoteFenced(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(have) {
		if r, there := w.report(name); have[name] && there && r.Fenced != "" && name != w.self && w.canSpare(have, name) {
			return true, w.group.Demote(ctx, name)
		}
	}
	return false, nil
}

// demote takes the vote from a member that is to follow without one.
func (w desiredGroup) demote(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(have) {
		if vote, wanted := w.voters[name]; have[name] && wanted && !vote && w.complete(have) && w.canSpare(have, name) {
			if name == w.self {
				return true, w.transfer(ctx, w.pickTransferee(have))
			}
			return true, w.group.Demote(ctx, name)
		}
	}
	return false, nil
}

// remove removes a member that is not desired. A leader transfers its
// leadership first.
func (w desiredGroup) remove(ctx context.Context, have map[string]bool) (bool, error) {
	for _, name := range names(have) {
		if _, wanted := w.voters[name]; wanted {
			continue
		}
		switch {
		case have[name] && !(w.complete(have) && w.canSpare(have, name)):
		case name != w.self:
			return true, w.group.Remove(ctx, name)
		default:
			if to := w.pickTransferee(have); to != "" {
				return true, w.transfer(ctx, to)
			}
		}
	}
	return false, nil
}

// complete reports whether every member that is to have a vote has one.
func (w desiredGroup) complete(have map[string]bool) bool {
	for name, vote := range w.voters {
		if vote && !have[name] {
			return false
		}
	}
	return true
}

// canSpare reports whether the group can commit without one of its voters: a
// majority of the others acknowledges entries now. Those that are behind, such
// as one on a new disk, don't.
func (w desiredGroup) canSpare(have map[string]bool, without string) bool {
	voters, there := 0, 0
	for name, vote := range have {
		if !vote || name == without {
			continue
		}
		voters++
		if r, ok := w.report(name); name == w.self || ok && canCommit(r) && w.group.Reachable(name) {
			there++
		}
	}
	return there > voters/2
}

// canCommit reports whether a replica had its group's log when it sent its
// report, so that it acknowledges entries. One that an operator has rebuilt
// does so until it loses its vote.
func canCommit(r groupReport) bool {
	return caughtUp(r) && !r.Halted && (r.Fenced == "" || r.Fenced == toBeRebuilt)
}

// pickTransferee returns a member to transfer leadership to, "" if there is
// none: it is there, has a vote, and is to keep it.
func (w desiredGroup) pickTransferee(have map[string]bool) string {
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

// transferToPreferred transfers leadership to the preferred member once it has
// been up for steadyTime.
func (w desiredGroup) transferToPreferred(ctx context.Context, have map[string]bool) (bool, error) {
	if w.preferred == w.self || !have[w.preferred] || !w.steady(w.preferred) {
		return false, nil
	}
	r, there := w.report(w.preferred)
	if !there || r.Fenced != "" || !caughtUp(r) || !w.mayTransfer() {
		return false, nil
	}
	if err := w.transfer(ctx, w.preferred); err != nil {
		return true, fmt.Errorf("transfer leadership to %s: %w", w.preferred, err)
	}
	return true, nil
}

// reconcile changes the members and the leader of the partition's group to what
// the facts say, while this node leads it.
func (r *replica) reconcile(ctx context.Context) {
	tick := time.NewTicker(announceInterval)
	defer tick.Stop()
	facts, _ := r.host.facts()
	mayTransfer := transferLimit(facts.Version)
	for {
		facts, changed := r.host.facts()
		want := map[string]bool{}
		for _, name := range facts.Followers(r.id) {
			want[name] = false
		}
		for _, name := range facts.Voters(r.id) {
			want[name] = true
		}
		now := time.Now()
		r.gate.update()
		w := desiredGroup{
			group: r.group, transfer: r.transfer.request, self: r.host.name, voters: want, preferred: r.gate.leaderWithRoom(facts.Voters(r.id), now),
			report: func(name string) (groupReport, bool) {
				if !r.host.peers.alive(name, now) {
					return groupReport{}, false
				}
				return r.host.peers.report(name, r.id, now)
			},
			steady: func(name string) bool {
				q, _ := r.host.peers.get(name)
				return q.Ready && r.host.peers.steady(name, steadyTime, now)
			},
			mayTransfer: func() bool { return mayTransfer(facts.Version) },
		}
		done, err := w.step(ctx)
		if err != nil && ctx.Err() == nil {
			r.log.Debug("the group does not match the facts yet", "err", err)
		}
		again := tick.C
		if done && !r.host.clustered {
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
