package broker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/cantuslog/cantus/broker/cluster"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// TestRetentionScripts runs testdata/retention/*.txt; -rewrite writes what is
// printed into the files. A partition's leader trims it in virtual time. The
// directives:
//
//	policy [age=T] [bytes=N] [count=N] [cursors=(…)] [archive=NAME] [lag=T]  set the policy
//	append [batches=N] [each=N] [bytes=N] [every=T] [id]  append batches of transactions
//	cursor NAME=N          set a cursor
//	sleep T                time passes
//	jump T                 the leader's clock is set forward
//	others T …             the clocks of the other nodes, as differences from the true time
//	lead                   another tenure begins
//	restart                the replica is made anew from a snapshot
//	restoring, restored    whether the partition is being restored
//	tick                   the leader looks
//	show                   what it would do
//
// A tick prints the transactions that it trims, and the advisories.
func TestRetentionScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/retention", func(t *testing.T, path string) {
		s := &retentionScript{stateOnDisk: newStateOnDisk(t), t: t, at: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
		s.certifier.now = s.now
		s.retain()
		datadriven.RunTest(t, path, scriptBlock(&s.out, s.run))
	})
}

type retentionScript struct {
	*stateOnDisk
	t        *testing.T
	at       time.Time // the true time
	jumped   time.Duration
	others   []time.Duration
	policy   *cluster.Retention
	retainer *retainer
	out      strings.Builder
}

func (s *retentionScript) now() time.Time { return s.at.Add(s.jumped) }

// retain makes the leader's retainer.
func (s *retentionScript) retain() {
	began := s.at
	trims := &trimmer{log: slog.New(slog.DiscardHandler), state: s.partitionState}
	s.certifier.now = s.now
	s.retainer = &retainer{
		log: trims.log, store: s.log, state: s.partitionState, lag: newMetrics().cursorLag, interval: time.Minute,
		facts: func() (cluster.Facts, <-chan struct{}) {
			f := cluster.Facts{}
			if s.policy != nil {
				f.Retention = map[string]cluster.Retention{"0": *s.policy}
			}
			return f, nil
		},
		others: func(time.Time) (all []time.Time) {
			for _, d := range s.others {
				all = append(all, s.at.Add(d))
			}
			return all
		},
		now: s.now, steady: func() time.Duration { return s.at.Sub(began) },
		advise: func(event string, fields map[string]any) {
			fmt.Fprintf(&s.out, "%s: behind %v, cursor %v at %v, %v transactions wait\n", event, fields["behind"], fields["cursor"], fields["txid"], fields["lag_transactions"])
		},
		trim: func(_ context.Context, may func(trimPoint) bool) (trimDone, error) {
			batch, done, err := trims.batch(may)
			if batch != nil {
				s.commit(raftstore.Committed{Term: 1, Data: batch})
			}
			return done, err
		},
	}
	s.retainer.begin()
}

// arg returns the value of an argument, and whether it was given.
func arg[T any](d *datadriven.TestData, t *testing.T, name string, parse func(string) (T, error)) (value T, is bool) {
	for _, a := range d.CmdArgs {
		if a.Key == name {
			v, err := parse(a.Vals[0])
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			return v, true
		}
	}
	return value, false
}

func (s *retentionScript) duration(d *datadriven.TestData, text string) time.Duration {
	v, err := time.ParseDuration(text)
	if err != nil {
		d.Fatalf(s.t, "%v", err)
	}
	return v
}

func (s *retentionScript) run(d *datadriven.TestData) {
	switch d.Cmd {
	case "policy":
		s.setPolicy(d)
	case "append":
		s.append(d)
	case "cursor":
		var w wal.BatchWriter
		w.Begin(wal.CursorWrites, s.mark.Load(), s.now().UnixNano(), 0)
		var txid uint64
		d.ScanArgs(s.t, d.CmdArgs[0].Key, &txid)
		w.AddCursor(wal.Cursor{Name: []byte(d.CmdArgs[0].Key), Txid: txid})
		s.commit(raftstore.Committed{Term: 1, Data: w.Finish()})
	case "sleep":
		s.at = s.at.Add(s.duration(d, d.CmdArgs[0].Key))
	case "jump":
		s.jumped += s.duration(d, d.CmdArgs[0].Key)
	case "others":
		s.others = nil
		for _, a := range d.CmdArgs {
			s.others = append(s.others, s.duration(d, a.Key))
		}
	case "lead":
		s.retain()
	case "restart":
		s.restart(true)
		s.retain()
	case "restoring":
		s.partitionState.restoring = &restoring{}
	case "restored":
		s.partitionState.restoring = nil
	case "tick":
		s.tick(d)
	case "show":
		s.show(d)
	default:
		d.Fatalf(s.t, "no directive %q", d.Cmd)
	}
}

func (s *retentionScript) setPolicy(d *datadriven.TestData) {
	var p subjects.RetentionPolicy
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "age":
			p.Age = a.Vals[0]
		case "bytes":
			d.ScanArgs(s.t, a.Key, &p.Bytes)
		case "count":
			d.ScanArgs(s.t, a.Key, &p.Count)
		case "cursors":
			p.Cursors = slices.Clone(a.Vals)
		case "archive":
			p.Archive = a.Vals[0]
		case "lag":
			p.ArchiveLag = a.Vals[0]
		default:
			d.Fatalf(s.t, "what is %q?", a.Key)
		}
	}
	policy, err := retentionPolicy(&p)
	if err != nil {
		fmt.Fprintln(&s.out, err)
		return
	}
	s.policy = &policy
	for _, text := range policyWarnings(policy) {
		fmt.Fprintln(&s.out, "warning:", strings.SplitN(text, ":", 2)[0])
	}
}

func (s *retentionScript) append(d *datadriven.TestData) {
	batches, each, bytes := 1, 1, 1
	for name, to := range map[string]*int{"batches": &batches, "each": &each, "bytes": &bytes} {
		if d.HasArg(name) {
			d.ScanArgs(s.t, name, to)
		}
	}
	every, _ := arg(d, s.t, "every", time.ParseDuration)
	for range batches {
		var rs []*request
		for range each {
			r := &request{tx: wal.Transaction{Kind: defaultKind, Payload: make([]byte, bytes)}}
			if d.HasArg("id") {
				r.tx.MsgID = fmt.Append(nil, "id", s.mark.Load(), len(rs))
				lockTransaction(&r.tx, &r.cert)
			}
			rs = append(rs, r)
		}
		if s.commit(raftstore.Committed{Term: 1, Data: s.certifier.certify(1, rs).data}) {
			d.Fatalf(s.t, "a batch is void")
		}
		s.at = s.at.Add(every)
	}
	fmt.Fprintf(&s.out, "up to %d\n", s.mark.Load())
}

func (s *retentionScript) tick(d *datadriven.TestData) {
	first := s.first
	if err := s.retainer.step(s.t.Context()); err != nil {
		d.Fatalf(s.t, "%v", err)
	}
	if s.first == first {
		fmt.Fprintln(&s.out, "nothing")
		return
	}
	fmt.Fprintf(&s.out, "trims %d to %d\n", first, s.first-1)
	if err := s.unchecked.compareBase(s.log, s.base, s.trimIndex); err != nil {
		d.Fatalf(s.t, "%v", err)
	}
}

func (s *retentionScript) show(d *datadriven.TestData) {
	r := s.retainer.describe()
	if err := s.retainer.explain(&r, *s.policy); err != nil {
		d.Fatalf(s.t, "%v", err)
	}
	if r.Goes == nil {
		fmt.Fprintln(&s.out, "nothing would go")
	} else {
		fmt.Fprintf(&s.out, "%d transactions would go, up to %d\n", r.Goes.Transactions, r.Goes.LastTxid)
	}
	for _, c := range r.Cursors {
		fmt.Fprintf(&s.out, "cursor %s at %d, behind by %d and %v\n", c.Name, c.Txid, c.LagTransactions, time.Duration(c.LagSeconds*float64(time.Second)).Round(time.Second))
	}
	for _, text := range r.Holds {
		fmt.Fprintln(&s.out, "holds:", text)
	}
}
