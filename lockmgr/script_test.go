package lockmgr_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cantuslog/cantus/lockmgr"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

// TestScripts runs testdata/*.txt. A script is made of blocks: directives, one a
// line, then ----, then what they print, up to an empty line. Lines
// that start with # are comments. The directives:
//
//	new [locks=N] [ids=N] [window=D]        a new Manager, an empty log
//	certify [hwm=N] [last=N] [read=NAME]… [write=NAME]… [append=NAME]… [id=ID] [payload=P] [now=D]
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
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file) })
	}
}

func runScript(t *testing.T, file string) {
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := newScript(t)
	var got bytes.Buffer
	lines := strings.Split(strings.TrimSuffix(string(want), "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		fmt.Fprintln(&got, lines[i])
		switch {
		case lines[i] == "" || strings.HasPrefix(lines[i], "#"):
		case lines[i] != "----":
			s.where = fmt.Sprintf("%s:%d", file, i+1)
			s.out.WriteString(s.run(strings.Fields(lines[i])))
		default:
			got.Write(s.out.Bytes())
			s.out.Reset()
			for i+1 < len(lines) && lines[i+1] != "" {
				i++
			}
		}
	}
	if s.out.Len() > 0 {
		t.Errorf("%s: the last block has no ----", file)
	}
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	diff(t, file, strings.TrimSuffix(got.String(), "\n"), lines)
}

func diff(t *testing.T, file, got string, want []string) {
	t.Helper()
	lines := strings.Split(got, "\n")
	for i := range max(len(lines), len(want)) {
		var g, w string
		if i < len(lines) {
			g = lines[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Fatalf("%s:%d:\n got %q\nwant %q\n(-update rewrites it)", file, i+1, g, w)
		}
	}
}

type script struct {
	t     *testing.T
	where string
	out   bytes.Buffer

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

func newScript(t *testing.T) *script {
	s := &script{t: t}
	s.run([]string{"new"})
	return s
}

func (s *script) run(fields []string) string {
	args := fields[1:]
	defer func() {
		if err := lockmgr.Check(s.m); err != nil {
			s.t.Errorf("%s: %v", s.where, err)
		}
	}()
	switch fields[0] {
	case "new":
		return s.fresh(args)
	case "certify":
		l := s.parse(args)
		v := s.m.Certify(l.tx, l.time)
		if v.Outcome == lockmgr.Pass {
			s.inFlight = append(s.inFlight, l)
		}
		return format(v)
	case "record":
		return s.record(args)
	case "rollback":
		from := s.number(args, "from")
		s.m.Rollback(from)
		s.inFlight = s.inFlight[:s.m.Last()-s.m.Committed()]
		return fmt.Sprintf("committed=%d last=%d\n", s.m.Committed(), s.m.Last())
	case "forget":
		s.first = s.number(args, "first")
		s.m.Forget(s.first)
		return fmt.Sprintf("floor=%d\n", s.m.Stats().Floor)
	case "advance":
		now := int64(s.duration(strings.TrimPrefix(args[0], "now=")))
		s.m.Advance(now)
		s.time = max(s.time, now)
		return ""
	case "oldest":
		return fmt.Sprintf("txid=%d\n", s.m.OldestID(int64(s.duration(strings.TrimPrefix(args[0], "now=")))))
	case "rebuild":
		return s.rebuild(args)
	case "newest":
		txid, exact := s.m.Newest(args[0])
		return fmt.Sprintf("txid=%d exact=%v\n", txid, exact)
	case "table":
		return s.table()
	}
	s.t.Fatalf("%s: no directive %q", s.where, fields[0])
	return ""
}

func (s *script) fresh(args []string) string {
	var opts lockmgr.Options
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "locks":
			opts.Locks = int(s.parseUint(value))
		case "ids":
			opts.IDs = int(s.parseUint(value))
		case "window":
			opts.IDWindow = s.duration(value)
		default:
			s.t.Fatalf("%s: no option %q", s.where, key)
		}
	}
	s.m, s.clock, s.log, s.first, s.inFlight, s.time = lockmgr.New(opts), 0, nil, 1, nil, 0
	return ""
}

// record commits what is in flight, or, given a transaction, one that never was.
func (s *script) record(args []string) string {
	n, times := 1, 0
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "n":
			n = int(s.parseUint(value))
		case "times":
			times = int(s.parseUint(value))
		default:
			times = max(times, 1)
		}
	}
	if times > 0 {
		for range times {
			l := s.parse(args)
			for i := range l.tx.Locks {
				txid := strconv.FormatUint(s.m.Committed()+1, 10)
				l.tx.Locks[i].Name = strings.ReplaceAll(l.tx.Locks[i].Name, "%d", txid)
			}
			s.m.Record(s.m.Committed()+1, l.time, l.tx)
			s.log = append(s.log, l)
		}
	} else {
		for range n {
			if len(s.inFlight) == 0 {
				s.t.Fatalf("%s: nothing in flight", s.where)
			}
			s.m.Commit()
			s.log, s.inFlight = append(s.log, s.inFlight[0]), s.inFlight[1:]
		}
	}
	return fmt.Sprintf("committed=%d last=%d\n", s.m.Committed(), s.m.Last())
}

// rebuild also checks that a walk to the end results in the same state.
func (s *script) rebuild(args []string) string {
	before := lockmgr.StateOf(s.m)
	stop := s.first
	if len(args) > 0 {
		stop = s.number(args, "stop")
	}
	s.inFlight = nil
	walked := rebuild(s.m, s.log, s.time, s.first, stop)
	if after := lockmgr.StateOf(s.m); len(args) == 0 && !after.Equal(before, true) {
		s.t.Errorf("%s: rebuilt:\n got %+v\nwant %+v", s.where, after, before)
	}
	return fmt.Sprintf("walked=%d floor=%d\n", walked, s.m.Stats().Floor)
}

// rebuild makes a Manager's state anew from a log, whose first kept transaction is
// first, walking down to stop at most; advanced is the time of the newest advance.
// It returns how many were walked.
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

func (s *script) parse(args []string) logged {
	tx := &lockmgr.Transaction{Fingerprint: lockmgr.Fingerprint(nil)}
	now := s.clock + int64(time.Millisecond)
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "hwm":
			tx.HighWaterMark, tx.HasHighWaterMark = s.parseUint(value), true
		case "last":
			tx.ExpectedLast, tx.HasExpectedLast = s.parseUint(value), true
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
			now = int64(s.duration(value))
		case "times":
		default:
			s.t.Fatalf("%s: no argument %q", s.where, key)
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

func (s *script) number(args []string, key string) uint64 {
	for _, arg := range args {
		if k, value, _ := strings.Cut(arg, "="); k == key {
			return s.parseUint(value)
		}
	}
	s.t.Fatalf("%s: %s= is missing", s.where, key)
	return 0
}

func (s *script) parseUint(value string) uint64 {
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		s.t.Fatalf("%s: %v", s.where, err)
	}
	return n
}

func (s *script) duration(value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil {
		s.t.Fatalf("%s: %v", s.where, err)
	}
	return d
}
