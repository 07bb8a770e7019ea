package main

// defect is a defect to plant.
type defect struct {
	name  string
	what  string
	where string // a key of simulations; "" for the first one
	edits []edit
}

// simulations are the tests that look for defects, by name.
var simulations = map[string]struct{ folder, test string }{
	"":       {"raftstore", "TestSimulation"},
	"broker": {"broker", "TestSimulationOfTheDataPath"},
	"moves":  {"broker", "TestSimulationOfMovingCursors"},
	"nodes":  {"broker", "TestSimulationOfNodes"},
	"store":  {"wal", "TestAReplacedEntryThatComesBackIsDamage"}, // no simulation has Badger lose what it had
}

func (d defect) simulation() struct{ folder, test string } { return simulations[d.where] }

// edit replaces a text that occurs once in a file.
type edit struct{ file, old, now string }

var defects = []defect{
	{"skip-sync", "the journal does not sync its frames", "", []edit{{
		"wal/journal/write.go", "if err := j.active.file.Sync(); err != nil {", "if err := error(nil); err != nil {",
	}}},
	{"term-not-stored", "a new term is not stored: it goes back at a restart", "", []edit{{
		"raftstore/logstore.go", "if s.pendingTerm = nil; s.set(keyTerm, value) != nil {", "if s.pendingTerm = nil; false {",
	}}},
	{"vote-not-stored", "a vote is not stored: a replica votes twice in a term", "", []edit{{
		"raftstore/logstore.go", "	if err == nil {\n		err = s.set(string(key), value)", "	if err == nil && len(key) < 4 {\n		err = s.set(string(key), value)",
	}}},
	{"follower-acks-unsynced", "a follower acknowledges entries before it has synced them", "", []edit{{
		"raftstore/logstore.go", "r == nil || r.State() != raft.Leader {", "r == nil {",
	}}},
	{"leader-unsynced-counts", "a leader applies and answers what it has not synced", "", []edit{{
		"raftstore/fsm.go", "n, err := a.nextSynced(rest)", "n, err := len(rest), error(nil)",
	}}},
	{"vote-before-sync", "a term or a vote is not waited for, nor the entries before it", "", []edit{{
		"raftstore/logstore.go", "if err := s.writes.waitSynced(allEntries); err != nil {", "if err := error(nil); err != nil {",
	}, {
		"raftstore/logstore.go", "return s.log.SetMeta(wal.Meta{Name: stablePrefix + key, Value: append([]byte{}, value...)})",
		"value = append([]byte{}, value...)\n	go func() { _ = s.log.SetMeta(wal.Meta{Name: stablePrefix + key, Value: value}) }()\n	return nil",
	}}},
	{"apply-twice", "the first entry of a batch of several is applied twice", "", []edit{{
		"raftstore/fsm.go", "	results := a.fsm.Apply(entries)\n", "	if len(entries) > 1 {\n		a.fsm.Apply(entries[:1])\n	}\n	results := a.fsm.Apply(entries)\n",
	}}},
	{"trim-past-snapshot", "a trim removes entries that were not in a snapshot yet", "", []edit{{
		"raftstore/group.go", "return g.log.trim(min(through, snap.Index-1))", "return g.log.trim(through)",
	}}},
	{"raft-695", "hashicorp/raft#695: every heartbeat bypasses raft's main goroutine, also one of a newer term", "", []edit{{
		"raftstore/heartbeat_bypass.go",
		"if g == nil || handle == nil || from == \"\" || b.term != q.Term || b.leader != from ||\n		g.raft.State() != raft.Follower || g.raft.CurrentTerm() != q.Term {",
		"if g == nil || handle == nil || from == \"\" {",
	}}},
	{"read-unconfirmed", "a leader that was replaced serves reads", "", []edit{{
		"raftstore/group.go", "		if g.confirmed(term, began) {", "		if g.confirmed(term, began) || true {",
	}, {
		"raftstore/group.go", "if err := g.await(ctx, g.raft.VerifyLeader, notLeading); err != nil {", "if err := error(nil); err != nil {",
	}}},
	{"old-reply-confirms", "a reply from before a read confirms the leader", "", []edit{{
		"raftstore/transport.go", "return p.confirmedTerm == term && !p.confirmedAt.Before(since)", "return p.confirmedTerm == term",
	}}},
	{"commit-past-request", "a follower takes the rest of a longer log for committed", "", []edit{{
		"raftstore/rpc_filter.go", "q.LeaderCommitIndex = min(q.LeaderCommitIndex, lastIndexAfter(q))", "_ = lastIndexAfter(q)",
	}}},
	{"snapshot-taken-for-log", "a replica that lacks what was trimmed says that it has the snapshot", "", []edit{{
		"raftstore/rpc_filter.go", "	if f.covers(q.LastLogIndex, q.LastLogTerm) {", "	if true {",
	}}},
	{"stale-fetch", "a replica fetches the log of one that lacks what it has acknowledged", "", []edit{{
		"raftstore/fetch_client.go", "if snap.Term < f.state.AckedTerm || snap.Term == f.state.AckedTerm && snap.Index < f.state.AckedIndex {", "if false {",
	}}},
	{"epoch-lost", "a truncation does not begin a new epoch of the log", "store", []edit{{
		"wal/log.go", "	l.epoch++\n", "",
	}, {
		"wal/log.go", "epoch := l.epoch + 1", "epoch := l.epoch",
	}}},
	{"close-loses-answers", "as it was once: Close does not wait for the FSM", "", []edit{{
		"raftstore/group.go", `for g.raft.Stats()["fsm_pending"] != "0" {`, "for false {",
	}}},
	{"verify-spins", "as it was once: VerifyLeader asks again without a pause", "", []edit{{
		"raftstore/group.go", "		case <-time.After(g.heartbeatTimeout / verifyAttempts):", "		default:",
	}}},

	{"answer-before-commit", "transactions are answered when they are proposed", "broker", []edit{{
		"broker/responder.go", "	if b.proposal == nil {\n		return nil\n	}\n	result", "	if b.proposal != nil || b.proposal == nil {\n		return nil\n	}\n	result",
	}}},
	{"locks-forgotten", "a follower does not record locks: they are forgotten when the leader changes", "broker", []edit{{
		"broker/certifier.go", "		c.table.Record(c.tx.Txid, c.tx.Time, &c.cert)", "		c.cert.Locks = nil\n		c.table.Record(c.tx.Txid, c.tx.Time, &c.cert)",
	}}},
	{"session-gap", "a number of a session passes although the one before was not accepted", "broker", []edit{{
		"lockmgr/manager.go", "	if tx.SessionSeq == s.seq+1 {", "	if tx.SessionSeq > s.seq {",
	}}},
	{"session-own-lock", "a session conflicts with what it has recorded itself", "broker", []edit{{
		"lockmgr/owner.go", "	if o.session != s.session {", "	if o.session != s.session || o.other == 0 {",
	}}},
	{"session-hides-others", "what others have recorded between two transactions of a session does not conflict", "broker", []edit{{
		"lockmgr/owner.go", "other: newest}\n", "other: o.other}\n",
	}}},
	{"sessions-forgotten-at-restart", "a start does not read the sessions in the log", "broker", []edit{{
		"broker/certifier.go", "		return c.table.RecordOlder(t.Txid, t.Time, &c.cert)", "		c.cert.Session = lockmgr.ID{}\n		return c.table.RecordOlder(t.Txid, t.Time, &c.cert)",
	}}},
	{"ids-forgotten", "a follower does not record message ids: they are forgotten when the leader changes", "broker", []edit{{
		"broker/certifier.go", "		c.table.Record(c.tx.Txid, c.tx.Time, &c.cert)", "		c.cert.ID = lockmgr.ID{}\n		c.table.Record(c.tx.Txid, c.tx.Time, &c.cert)",
	}}},
	{"locks-forgotten-at-restart", "a start does not read the locks in the log", "broker", []edit{{
		"broker/certifier.go", "		return c.table.RecordOlder(t.Txid, t.Time, &c.cert)", "		c.cert.Locks = nil\n		return c.table.RecordOlder(t.Txid, t.Time, &c.cert)",
	}}},
	{"ids-forgotten-at-trim", "a trim removes transactions whose message ids still count", "broker", []edit{{
		"broker/certifier.go", "oldest > 0 && oldest < keep {", "oldest > 0 && oldest < keep && false {",
	}}},
	{"no-rollback", "what was in flight stays in the lock table when it does not commit", "broker", []edit{{
		"broker/certifier.go", "	if len(c.inFlight) == 0 {\n		return", "	if len(c.inFlight) < 1000 {\n		return",
	}}},
	{"old-term-applied", "a batch that was certified in an earlier term is not void", "broker", []edit{{
		"broker/partitionstate.go", "|| !e.Restored && b.OutOfTerm(e.Term) ||", "||",
	}}},
	{"refused-for-nothing", "a refusal stands although the transaction that it depends on did not commit", "broker", []edit{{
		"broker/responder.go", "		case p.broken.Load():", "		case p.broken.Load() && false:",
	}}},
	{"ahead-unconfirmed", "a leader that was replaced says that a mark is past the end of the log", "broker", []edit{{
		"broker/responder.go", "		if further && !confirmed() {", "		if further && !confirmed() && false {",
	}}},
	{"txid-skipped", "a batch that does not follow on the last transaction is not void", "broker", []edit{{
		"broker/partitionstate.go", "	if b.First != s.mark.Load()+1 || e", "	if e",
	}}},

	{"older-copy-served", "a node that runs on an older copy of its directory is not refused", "nodes", []edit{{
		"broker/generations.go", "		if why != nil {\n			if g.overtaken", "		if why != nil && false {\n			if g.overtaken",
	}}},
	{"cursor-not-compared", "a cursor is set although it is not where its writer expects it", "nodes", []edit{{
		"broker/partitionstate.go", "return owned && (!w.HasExpected || w.Expected == c.Txid)", "return owned",
	}}},
	{"cursors-not-stored", "a snapshot does not store cursors: a restart loses them", "nodes", []edit{{
		"broker/partitionstate.go", "		metas = append(metas, m)\n	}", "	}",
	}}},
	{"deposed-leader-refuses", "a leader that was replaced says that what a client reads is past the end", "nodes", []edit{{
		"broker/requestserver.go", "func (s *requestServer) confirmLeader(term uint64) bool {", "func (s *requestServer) confirmLeader(term uint64) bool {\n	if term > 0 {\n		return true\n	}",
	}}},
	{"kinds-skipped", "a read by kind leaves out a transaction now and then", "nodes", []edit{{
		"broker/query.go", "!isOneOf(q.kinds, t.Kind), q.lock", "!isOneOf(q.kinds, t.Kind) || len(q.kinds) > 0 && t.Txid%7 == 0, q.lock",
	}}},
	{"cursor-of-another", "a transaction moves a cursor that is not its session's", "moves", []edit{{
		"broker/cursormove.go", "case at.Owner != owner:", "case false:",
	}}},
	{"cursor-write-unseen", "a cursor write in flight is not known when a transaction moves the cursor", "moves", []edit{{
		"broker/cursormove.go", "case slices.ContainsFunc(s.writing, inFlight):", "case false && slices.ContainsFunc(s.writing, inFlight):",
	}}},
	{"cursor-write-between", "a cursor write is proposed between the decision on a batch and its proposal", "moves", []edit{{
		"broker/sequencer.go", "		s.cursors.hold()\n		defer s.cursors.release()\n", "",
	}}},
	{"cursor-move-lost", "a cursor that has moved is not in the next snapshot", "moves", []edit{{
		"broker/cursormove.go", "		s.dirty[m.name] = true\n", "",
	}}},
	{"cursor-moves-on-followers", "a leader does not move the cursors of its own batches", "moves", []edit{{
		"broker/certifier.go", "		moves = c.inFlight[0].moves\n", "",
	}}},
	{"cursor-write-noted-late", "a cursor write is noted as in flight after it was proposed", "moves", []edit{{
		"broker/cursormove.go", "	o.state.writing = append(o.state.writing, cursorEntry{data, names})\n	o.state.mu.Unlock()\n	return cursorProposal{o, data, propose(data)}",
		"	o.state.mu.Unlock()\n	proposed := propose(data)\n	o.state.mu.Lock()\n	defer o.state.mu.Unlock()\n	o.state.writing = append(o.state.writing, cursorEntry{data, names})\n	return cursorProposal{o, data, proposed}",
	}}},
	{"cursor-write-not-forgotten", "a cursor write stays noted as in flight when it was refused", "moves", []edit{{
		"broker/cursormove.go", "		p.order.notWritten(p.data)\n", "",
	}}},
	{"cursor-owner-unchecked", "a transaction moves a cursor whoever its owner is", "nodes", []edit{{
		"broker/cursormove.go", "case !known:", "case false && !known:",
	}, {
		"broker/cursormove.go", "case at.Owner == \"\":", "case false:",
	}, {
		"broker/cursormove.go", "case at.Owner != owner:", "case false && at.Owner != owner:",
	}, {
		"broker/cursormove.go", "owned := now.Owner == m.owner", "owned := true",
	}}},
	{"cursor-move-forgotten", "a cursor that has moved is not in the next snapshot: a restart brings it back", "nodes", []edit{{
		"broker/cursormove.go", "		s.dirty[m.name] = true\n", "",
	}}},
}
