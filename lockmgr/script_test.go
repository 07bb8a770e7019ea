package lockmgr_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/cantuslog/cantus/lockmgr"
)

// TestScripts runs testdata/*.txt. A script is made of blocks: directives, one
// a line, then ----, then what they print, up to an empty line. Lines that
// start with # are comments; -rewrite writes what is printed into the files.
// The directives:
//
//	new [locks=N] [ids=N] [window=D]        a new Manager, an empty log
//	certify [hwm=N] [last=N] [until=D] [read=NAME]… [write=NAME]… [append=NAME]… [id=ID] [payload=P] [now=D]
//	record [n=N]                            commit the N oldest in flight (default 1)
//	record [times=N] <as for certify>       commit what never was in flight; %d is its txid
//	rollback from=N                         take back what is in flight
//	forget first=N                          trim the log
//	advance now=D                           move the partition's time on
//	oldest now=D                            the oldest transaction whose id counts
//	rebuild [stop=N]                        anew from the log, not walking below stop
//	newest NAME                             the newest committed recorder
//	table                                   everything
//
// Times are durations since the epoch; without one, a transaction is a
// millisecond after the one before.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{t: t, m: lockmgr.New(lockmgr.Options{}), first: 1}
		datadriven.RunTest(t, path, s.block)
	})
}

type script struct {
	t  *testing.T
	at *datadriven.TestData // the directive that runs

	m        *lockmgr.Manager
	clock    int64
	log      []logged // of all that is committed
	first    uint64   // the first one kept
	time     int64    // of the newest advance
	inFlight []logged
}

type logged struct {
	time int64
	tx   *lockmgr.Transaction
}

// block runs the directives of a block. To datadriven the first is a command
// and the others are its input.
func (s *script) block(t *testing.T, d *datadriven.TestData) string {
	out := s.run(d)
	for line := range strings.SplitSeq(d.Input, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cmd, args, err := datadriven.ParseLine(line)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		out += s.run(&datadriven.TestData{Pos: d.Pos + ", " + line, Cmd: cmd, CmdArgs: args})
	}
	return out
}

func (s *script) run(d *datadriven.TestData) string {
	s.at = d
	defer func() {
		if err := lockmgr.Check(s.m); err != nil {
			s.t.Errorf("%s: %v", d.Pos, err)
		}
	}()
	switch d.Cmd {
	case "new":
		return s.fresh()
	case "certify":
		l := s.parse()
		v := s.m.Certify(l.tx, l.time)
		if v.Outcome == lockmgr.Pass {
			s.inFlight = append(s.inFlight, l)
		}
		return format(v)
	case "record":
		return s.record()
	case "rollback":
		s.m.Rollback(s.number("from"))
		s.inFlight = s.inFlight[:s.m.Last()-s.m.Committed()]
		return fmt.Sprintf("committed=%d last=%d\n", s.m.Committed(), s.m.Last())
	case "forget":
		s.first = s.number("first")
		s.m.Forget(s.first)
		return fmt.Sprintf("floor=%d\n", s.m.Stats().Floor)
	case "advance":
		now := s.moment("now")
		s.m.Advance(now)
		s.time = max(s.time, now)
		return ""
	case "oldest":
		return fmt.Sprintf("txid=%d\n", s.m.OldestID(s.moment("now")))
	case "rebuild":
		return s.rebuild()
	case "newest":
		txid, exact := s.m.Newest(d.CmdArgs[0].Key)
		return fmt.Sprintf("txid=%d exact=%v\n", txid, exact)
	case "table":
		return s.table()
	}
	d.Fatalf(s.t, "no directive %q", d.Cmd)
	return ""
}

// number returns the value of an argument that must be there.
func (s *script) number(key string) (n uint64) {
	s.at.ScanArgs(s.t, key, &n)
	return n
}

// moment returns the value of an argument, a duration since the epoch.
func (s *script) moment(key string) int64 {
	var value string
	s.at.ScanArgs(s.t, key, &value)
	return int64(s.duration(value))
}

func (s *script) duration(value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil {
		s.at.Fatalf(s.t, "%v", err)
	}
	return d
}

func (s *script) fresh() string {
	var opts lockmgr.Options
	s.at.MaybeScanArgs(s.t, "locks", &opts.Locks)
	s.at.MaybeScanArgs(s.t, "ids", &opts.IDs)
	if s.at.HasArg("window") {
		opts.IDWindow = time.Duration(s.moment("window"))
	}
	s.m, s.clock, s.log, s.first, s.inFlight, s.time = lockmgr.New(opts), 0, nil, 1, nil, 0
	return ""
}

// record commits the oldest transactions in flight, or, if a transaction is
// given, one that was never in flight.
func (s *script) record() string {
	n, times := 1, 0
	isN := s.at.MaybeScanArgs(s.t, "n", &n)
	if !s.at.MaybeScanArgs(s.t, "times", &times) && !isN && len(s.at.CmdArgs) > 0 {
		times = 1
	}
	for range times {
		l := s.parse()
		for i := range l.tx.Locks {
			txid := strconv.FormatUint(s.m.Committed()+1, 10)
			l.tx.Locks[i].Name = strings.ReplaceAll(l.tx.Locks[i].Name, "%d", txid)
		}
		s.m.Record(s.m.Committed()+1, l.time, l.tx)
		s.log = append(s.log, l)
	}
	for range n {
		if times > 0 {
			break
		}
		if len(s.inFlight) == 0 {
			s.at.Fatalf(s.t, "nothing in flight")
		}
		s.m.Commit()
		s.log, s.inFlight = append(s.log, s.inFlight[0]), s.inFlight[1:]
	}
	return fmt.Sprintf("committed=%d last=%d\n", s.m.Committed(), s.m.Last())
}

// rebuild also checks that a walk to the end results in the same state.
func (s *script) rebuild() string {
	before := lockmgr.StateOf(s.m)
	stop := s.first
	toTheEnd := !s.at.MaybeScanArgs(s.t, "stop", &stop)
	s.inFlight = nil
	walked := rebuild(s.m, s.log, s.time, s.first, stop)
	if after := lockmgr.StateOf(s.m); toTheEnd && !after.Equal(before, true) {
		s.t.Errorf("%s: rebuilt:\n got %+v\nwant %+v", s.at.Pos, after, before)
	}
	return fmt.Sprintf("walked=%d floor=%d\n", walked, s.m.Stats().Floor)
}

// rebuild builds a Manager's state anew from a log, whose first kept
// transaction is first, walking down to stop at most; advanced is the time of
// the newest advance.
func rebuild(m *lockmgr.Manager, log []logged, advanced int64, first, stop uint64) int {
	committed := uint64(len(log))
	last := advanced
	if committed > 0 {
		last = max(last, log[committed-1].time)
	}
	m.Reset(committed, last)
	walked := 0
	for txid := committed; txid >= max(stop, 1); txid-- {
		walked++
		if l := log[txid-1]; !m.RecordOlder(txid, l.time, l.tx) {
			break
		}
	}
	m.Rebuilt(first)
	return walked
}

func (s *script) table() string {
	var b strings.Builder
	state := lockmgr.StateOf(s.m)
	fmt.Fprintf(&b, "committed=%d last=%d floor=%d\n", state.Committed, state.Last, state.Floor)
	for _, part := range []struct {
		what  string
		locks []lockmgr.TrackedLock
		ids   []lockmgr.TrackedID
	}{{"", state.Locks, state.IDs}, {" in flight", state.InFlightLocks, state.InFlightIDs}} {
		for _, l := range part.locks {
			fmt.Fprintf(&b, "lock%s %s txid=%d\n", part.what, l.Name, l.Txid)
		}
		for _, id := range part.ids {
			fmt.Fprintf(&b, "id%s txid=%d time=%v\n", part.what, id.Txid, time.Duration(id.Time))
		}
	}
	return b.String()
}

// parse returns the transaction that the arguments describe, and its time.
func (s *script) parse() logged {
	tx := &lockmgr.Transaction{Fingerprint: lockmgr.Fingerprint(nil)}
	now := s.clock + int64(time.Millisecond)
	for _, arg := range s.at.CmdArgs {
		switch value := arg.SingleVal(s.t); arg.Key {
		case "hwm":
			tx.HighWaterMark, tx.HasHighWaterMark = s.number("hwm"), true
		case "last":
			tx.ExpectedLast, tx.HasExpectedLast = s.number("last"), true
		case "until":
			until, err := time.ParseDuration(value)
			if err != nil {
				s.t.Fatal(err)
			}
			tx.NotAfter, tx.HasNotAfter = int64(until), true
		case "read":
			tx.Locks = append(tx.Locks, lockmgr.Lock{Mode: lockmgr.Read, Name: value})
		case "write":
			tx.Locks = append(tx.Locks, lockmgr.Lock{Mode: lockmgr.Write, Name: value})
		case "append":
			tx.Locks = append(tx.Locks, lockmgr.Lock{Mode: lockmgr.Append, Name: value})
		case "id":
			tx.ID = lockmgr.HashID(value)
		case "payload":
			tx.Fingerprint = lockmgr.Fingerprint([]byte(value))
		case "now":
			now = s.moment("now")
		case "times":
		default:
			s.at.Fatalf(s.t, "no argument %q", arg.Key)
		}
	}
	s.clock = now
	return logged{now, tx}
}

func format(v lockmgr.Verdict) string {
	var b strings.Builder
	b.WriteString(v.Outcome.String())
	if v.Txid != 0 {
		fmt.Fprintf(&b, " txid=%d", v.Txid)
	}
	if v.DependsOn != 0 {
		fmt.Fprintf(&b, " depends=%d", v.DependsOn)
	}
	for _, c := range v.Conflicts {
		fmt.Fprintf(&b, " %s=%s@%d", c.Mode, c.Name, c.Txid)
	}
	b.WriteByte('\n')
	return b.String()
}
