package judge

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"
)

// Check judges a history.
func Check(h *History) *Report {
	header := h.Header
	header.MessageIDWindow = cmp.Or(header.MessageIDWindow, 120e9)
	header.MessageIDs = cmp.Or(header.MessageIDs, 1_000_000)
	if header.MessageIDWindow == WholeLog {
		header.MessageIDWindow, header.MessageIDs = math.MaxInt64, math.MaxInt
	}
	header.Locks = cmp.Or(header.Locks, 1_000_000)
	all := make([]*partition, header.Partitions)
	for i := range all {
		all[i] = &partition{number: i, header: &header, report: &Report{}}
	}
	for _, o := range h.Operations {
		all[o.Partition].operations = append(all[o.Partition].operations, o)
	}
	for _, d := range h.Drains {
		all[d.Partition].drains = append(all[d.Partition].drains, d)
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, p := range all {
		group.Go(func() error {
			p.check()
			return nil
		})
	}
	_ = group.Wait() // check returns nothing
	report := &Report{Findings: []Finding{}, Count: map[Class]int{}}
	for _, p := range all {
		report.merge(p.report)
	}
	report.sort()
	return report
}

// partition is what the judge knows of one partition.
type partition struct {
	number     int
	header     *Header
	report     *Report
	operations []*Operation
	drains     []*Drain

	log      []*Stored // the log that most replicas agree on, in ascending order
	first    uint64    // its first txid, or the one after last
	last     uint64    // its last txid, 0 if it is empty
	known    uint64    // the highest txid that was acknowledged, or last
	allowed  uint64    // the highest first txid that a trim may have made
	attempts []attempt
	byTxid   map[uint64][]*attempt // those that were acknowledged
	byID     map[string][]*attempt // those with a message id
	byText   map[string][]*attempt // those without one that may have been carried out, by content
	spans    map[uint64]span       // of each transaction in the log
	begun    timeline              // the highest txid that may be committed
	seen     timeline              // the highest txid that was known to be committed
	locks    int                   // how many were recorded in the log
	moves    map[string][]move     // of each cursor, by transactions that are committed
	mayMove  map[string][]*attempt // by those that may be, and are trimmed
}

// attempt is one request to append a transaction: an append, or a part of a
// batch.
type attempt struct {
	*Operation
	tx     *Transaction
	result *Result
	index  int // in the batch
}

// String names the attempt in a finding.
func (a *attempt) String() string {
	name := fmt.Sprintf("%s's append", a.Client)
	if a.Append == nil {
		name = fmt.Sprintf("%s's batch, transaction %d", a.Client, a.index)
	}
	if a.tx.ID != "" {
		name += fmt.Sprintf(" of id %q", a.tx.ID)
	}
	return name + fmt.Sprintf(" at %d", a.Start)
}

// acknowledged reports whether the client got a txid.
func (a *attempt) acknowledged() bool { return a.result.Outcome == OK }

func (p *partition) find(c Class, format string, args ...any) {
	p.report.add(c, p.number, format, args...)
}

func (p *partition) check() {
	p.report.Operations, p.report.Drains = len(p.operations), len(p.drains)
	p.mergeDrains()
	p.report.Transactions = len(p.log)
	p.collectAttempts()
	p.collectTrims()
	p.checkDrains()
	p.checkDigests()
	p.measure()
	p.checkAcknowledged()
	p.checkPresence()
	p.checkAtomic()
	p.checkSessions()
	p.checkOrder()
	p.checkIDs()
	p.checkLocks()
	p.checkConditions()
	p.checkRefusals()
	p.checkMarks()
	p.checkReads()
	p.checkInfos()
	p.checkCursors()
}

// collectAttempts makes a list of all requests to append, each transaction of a
// batch by itself.
func (p *partition) collectAttempts() {
	p.byTxid, p.byID, p.byText = map[uint64][]*attempt{}, map[string][]*attempt{}, map[string][]*attempt{}
	n := 0
	for _, o := range p.operations {
		n += len(o.Batch)
		if o.Append != nil {
			n++
		}
	}
	p.attempts = make([]attempt, 0, n) // pointers into it stay valid
	for _, o := range p.operations {
		if o.Append != nil {
			p.attempts = append(p.attempts, attempt{Operation: o, tx: o.Append, result: &o.Result})
		}
		if o.Atomic && o.Outcome == Refused && !o.open() {
			p.attempts = append(p.attempts, attempt{Operation: o, tx: o.whole(), result: &o.Result})
			continue
		}
		for i := range o.Batch {
			a := attempt{Operation: o, tx: &o.Batch[i], result: &o.Result, index: i}
			if o.Results != nil {
				a.result = &o.Results[i]
			}
			p.attempts = append(p.attempts, a)
		}
	}
	p.known = p.last
	for i := range p.attempts {
		a := &p.attempts[i]
		if a.acknowledged() {
			p.byTxid[a.result.Txid] = append(p.byTxid[a.result.Txid], a)
			p.known = max(p.known, a.result.Txid)
		}
		switch {
		case a.tx.ID != "":
			p.byID[a.tx.ID] = append(p.byID[a.tx.ID], a)
		case a.acknowledged() || a.open():
			p.byText[a.tx.Content] = append(p.byText[a.tx.Content], a)
		}
	}
}

// span is when a transaction took effect: after the start of the first request
// that can have appended it, and before the end of the first that says so. It
// also took effect after from: what is before it in the log was sent by then.
type span struct{ start, end, from int64 }

// timeline is the highest txid at each time.
type timeline struct {
	points []point
}

type point struct {
	at   int64
	txid uint64
}

func (t *timeline) add(at int64, txid uint64) { t.points = append(t.points, point{at, txid}) }

// build makes the points ascend in txid too.
func (t *timeline) build() {
	slices.SortFunc(t.points, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(t.points); i++ {
		t.points[i].txid = max(t.points[i].txid, t.points[i-1].txid)
	}
}

// until returns the highest txid of the points up to and including a time.
// Operations that touch overlap.
func (t *timeline) until(at int64) uint64 { return t.before(at + 1) }

// before returns the highest txid of the points before a time, 0 if there is
// none.
func (t *timeline) before(at int64) uint64 {
	i, _ := slices.BinarySearchFunc(t.points, at, func(p point, at int64) int { return cmp.Compare(p.at, at) })
	for i > 0 && t.points[i-1].at >= at {
		i--
	}
	if i == 0 {
		return 0
	}
	return t.points[i-1].txid
}

// reached returns the first time with a txid or a higher one, the end of time
// if there is none.
func (t *timeline) reached(txid uint64) int64 {
	i, _ := slices.BinarySearchFunc(t.points, txid, func(p point, txid uint64) int { return cmp.Compare(p.txid, txid) })
	for i > 0 && t.points[i-1].txid >= txid {
		i--
	}
	if i == len(t.points) {
		return math.MaxInt64
	}
	return t.points[i].at
}

// measure computes when each transaction took effect, and what was known and
// possible at each time.
func (p *partition) measure() {
	p.spans = make(map[uint64]span, len(p.log))
	from := int64(math.MinInt64)
	for _, t := range p.log {
		s := p.spanOf(t)
		from = max(from, s.start)
		s.from = from
		p.spans[t.Txid] = s
		p.begun.add(from, t.Txid)
	}
	for txid, as := range p.byTxid {
		_, is := p.spans[txid]
		for _, a := range as {
			p.seen.add(a.End, txid)
			if !is { // it is lost or trimmed
				p.begun.add(a.Start, txid)
			}
		}
	}
	for _, o := range p.operations {
		if mark := p.markOf(o); mark > 0 {
			p.seen.add(o.End, mark)
		}
	}
	p.begun.build()
	p.seen.build()
}

// markOf returns the highest txid that an operation's answer, other than an
// acknowledgement, proves to be committed. It ignores those that are not in the
// log, which other checks find.
func (p *partition) markOf(o *Operation) (mark uint64) {
	if o.HighWaterMark != nil {
		mark = *o.HighWaterMark
	}
	if o.Read != nil {
		for _, t := range o.Read.Transactions {
			mark = max(mark, t.Txid)
		}
	}
	if o.Get != nil && o.Get.Transaction != nil {
		mark = max(mark, o.Get.Transaction.Txid)
	}
	if mark > p.last {
		return 0
	}
	return mark
}

func (p *partition) spanOf(t *Stored) span {
	s := span{start: math.MaxInt64, end: math.MaxInt64}
	for _, a := range p.byTxid[t.Txid] {
		s.start, s.end = min(s.start, a.Start), min(s.end, a.End)
	}
	senders := p.byText[t.Content]
	if t.ID != "" {
		senders = p.byID[t.ID]
	} else if len(p.byTxid[t.Txid]) > 0 && t.Atomic == nil {
		return s // without an id it has one request
	}
	for _, a := range senders {
		if a.open() {
			s.start = min(s.start, a.Start)
		}
	}
	if s.start == math.MaxInt64 {
		s.start = math.MinInt64 // sent by a client that is not in the history
	}
	return s
}
