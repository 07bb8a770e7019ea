package broker

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/raftstore"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// restorer serves the steps by which a partition is restored, on its leader. It
// checks what comes from outside, and answers each step once it is applied.
type restorer struct {
	partition int
	cluster   string // the id of this cluster
	state     *partitionState
	group     *raftstore.Group
	gate      *diskGate
	requests  *requestServer
	now       func() time.Time
	feed      func(batches [][]byte) // publishes what a mirror has got
	// refusesRecords returns why no records of a version can be stored now, nil
	// if they can.
	refusesRecords func(version int) *subjects.Error
	ended          func() // called when a mirror has become an ordinary partition

	mu sync.Mutex // held while a step is served
	// piece is the incomplete batch behind the transaction after.
	piece []byte
	after uint64
}

// maxPiece bounds a batch that is loaded. The journal takes no larger entry.
const maxPiece = 32 << 20

// errRestoring refuses what would change or show a partition that is not whole
// yet.
func errRestoring(partition int) error {
	return subjects.Errorf(subjects.Unavailable,
		"partition %d is being restored: a restore or an import (--keep) into it is not complete; if it was interrupted, run it again", partition)
}

// errMirror refuses what would change a mirror.
func errMirror(partition int, source string) error {
	return subjects.Errorf(subjects.Unavailable,
		"partition %d is a mirror of cluster %s: it is read-only until \"cantus mirror promote\"", partition, source)
}

// restorePoint is how far a restore is.
type restorePoint struct {
	wal.Base
	time      int64 // of the last transaction
	restoring bool
}

func (s *partitionState) restorePoint() restorePoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return restorePoint{wal.Base{Txid: s.mark.Load(), Digest: s.digest}, s.lastTime, s.isRestoring()}
}

// serve carries out one step.
func (s *restorer) serve(ctx context.Context, m *natslink.Message) error {
	reply, err := s.serveAlone(ctx, m)
	if err == nil {
		s.requests.answer(natslink.AppendPub(nil, m.Reply, mustJSON(reply)))
	}
	return err
}

// serveAlone is serve without the answer, which must not come before another
// step can be served.
func (s *restorer) serveAlone(ctx context.Context, m *natslink.Message) (reply subjects.RestoreReply, err error) {
	if !s.mu.TryLock() {
		return reply, subjects.Errorf(subjects.Busy, "another step of the partition's restore is being carried out: send one after the other")
	}
	defer s.mu.Unlock()
	if err := s.step(ctx, m); err != nil {
		s.piece = nil
		return reply, err
	}
	at := s.state.restorePoint()
	return subjects.RestoreReply{
		Partition: s.partition, Restoring: at.restoring, HighWaterMark: at.Txid, Digest: hex.EncodeToString(at.Digest[:]), Joined: len(s.piece),
	}, nil
}

func (s *restorer) step(ctx context.Context, m *natslink.Message) error {
	if err := s.gate.fullError(); err != nil {
		return err
	}
	if at, is, err := parseLoad(m.Header); is || err != nil {
		if err != nil {
			return err
		}
		return s.load(ctx, at, m.Payload)
	}
	s.piece = nil
	var r subjects.RestoreRequest
	if len(m.Payload) > subjects.MaxRestoreBody {
		return subjects.Errorf(subjects.TooLarge, "the body has %d bytes: at most %d are allowed", len(m.Payload), subjects.MaxRestoreBody)
	}
	if err := strictJSON(m.Payload, &r); err != nil {
		return err
	}
	given := 0
	for _, is := range []bool{r.Begin != nil, r.Cursors != nil, r.End != nil} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return subjects.Errorf(subjects.BadRequest, `body: give exactly one of "begin", "cursors" and "end", or a piece of the log with %s and %s`,
			subjects.HeaderPrevious, subjects.HeaderOffset)
	case r.Begin != nil:
		return s.begin(ctx, r.Begin)
	case r.End != nil:
		return s.end(ctx, r.End)
	}
	return s.cursors(ctx, r.Cursors)
}

// propose commits steps, and returns an error if they changed nothing.
func (s *restorer) propose(steps ...wal.RestoreStep) error {
	var w wal.BatchWriter
	w.Begin(wal.Restores, s.state.position().mark, s.now().UnixNano(), 0)
	for _, step := range steps {
		w.AddRestore(step)
	}
	return s.outcome(s.group.Propose(w.Finish()))
}

// outcome waits for the outcome of a step. One that changed nothing met another
// state than its leader had seen.
func (s *restorer) outcome(p raftstore.Proposal) error {
	a, err := s.gate.outcome(p)
	switch {
	case err != nil:
		return err
	case a.failed:
		return raftstore.ErrUnknown
	case a.void:
		return subjects.Errorf(subjects.WrongLast, "another request has changed the partition: begin again, and go on where it is")
	}
	return nil
}

func parseDigest(field, digest string) (d wal.Digest, err error) {
	b, err := hex.DecodeString(digest)
	if err != nil || len(b) != len(d) {
		return d, subjects.Errorf(subjects.BadRequest, "%s.digest: %q is not a digest, %d bytes in hexadecimal", field, clip([]byte(digest)), len(d))
	}
	return wal.Digest(b), nil
}

// begin makes an empty partition one that is restored. If it is already, by the
// same backup, the answer says how far.
func (s *restorer) begin(ctx context.Context, r *subjects.RestoreBegin) error {
	b := wal.RestoreBegin{Cluster: r.Cluster, Base: wal.Base{Txid: r.Txid}, Mirror: r.Mirror}
	if err := s.beginHistory(&b, r.History); err != nil {
		return err
	}
	if err := checkClusterID(b.Cluster); err != nil {
		return err
	}
	if b.Cluster == s.cluster && b.Mirror {
		return subjects.Errorf(subjects.BadRequest, "this is cluster %s itself: mirror it into another one", b.Cluster)
	}
	if b.Cluster == s.cluster {
		return subjects.Errorf(subjects.BadRequest, "the backup was taken from this cluster: restore it into a new one, so that clients can tell the two apart")
	}
	switch {
	case r.Txid == 0 && (r.Digest != "" || !r.Time.IsZero()):
		return subjects.Errorf(subjects.BadRequest, "begin: txid 0 is the beginning of a log, and has neither digest nor time")
	case r.Txid > 0:
		var err error
		if b.Base.Digest, err = parseDigest("begin", r.Digest); err != nil {
			return err
		}
		if b.Time = r.Time.UnixNano(); b.Time <= 0 || !time.Unix(0, b.Time).Equal(r.Time) {
			return subjects.Errorf(subjects.BadRequest, "begin.time: give the time of transaction %d", r.Txid)
		}
		if r.Txid > maxRestoredTxid {
			return subjects.Errorf(subjects.BadRequest, "begin.txid: %d is out of range", r.Txid)
		}
		if b.Time >= maxRestoredTime {
			return subjects.Errorf(subjects.BadRequest, "begin.time: %s is out of range: it is after the year 2261", r.Time.UTC().Format(time.RFC3339Nano))
		}
	}
	if err := s.group.VerifyLeader(ctx, s.requests.term()); err != nil {
		return err
	}
	s.state.mu.Lock()
	goesOn, err := s.state.restoring.restoresFrom(&b), s.state.mayBegin(&b)
	s.state.mu.Unlock()
	if goesOn || err != nil {
		return err
	}
	return s.propose(wal.RestoreStep{Begin: &b})
}

// beginHistory sets the history with which a mirror begins.
func (s *restorer) beginHistory(b *wal.RestoreBegin, history []subjects.PastCluster) error {
	if len(history) > 0 && !b.Mirror {
		return subjects.Errorf(subjects.BadRequest, "begin.history: a restore has it at its end, and only a mirror at its beginning")
	}
	for _, p := range history {
		if p.Cluster == s.cluster {
			return subjects.Errorf(subjects.BadRequest, "cluster %s was itself made from this one, %s: mirror it into a new cluster", b.Cluster, s.cluster)
		}
		b.History = append(b.History, wal.PastCluster{ID: p.Cluster, LastTxid: p.LastTxid})
	}
	return checkPast("begin.history", b.History)
}

// What follows on a restored log needs txids and times, too. A leader that had
// no time left would begin to lead again and again.
const (
	maxRestoredTxid = 1 << 63
	maxRestoredTime = 9_214_646_400_000_000_000 // 2262-01-01, 100 days before the end
)

// cursors sets cursors as they were.
func (s *restorer) cursors(ctx context.Context, cursors []subjects.RestoredCursor) error {
	state := s.state
	steps := make([]wal.RestoreStep, 0, len(cursors))
	state.mu.Lock()
	isRestoring, isMirror, mark, more := state.isRestoring(), state.restoring.source() != "", state.mark.Load(), 0
	for _, c := range cursors {
		if _, known := state.cursors[c.Name]; !known {
			more++
		}
	}
	known := len(state.cursors)
	state.mu.Unlock()
	if err := s.group.VerifyLeader(ctx, s.requests.term()); err != nil {
		return err
	}
	switch {
	case !isRestoring:
		return s.notRestoring()
	case known+more > subjects.MaxCursors:
		return subjects.Errorf(subjects.TooLarge, "a partition has at most %d cursors", subjects.MaxCursors)
	case len(cursors) == 0:
		return nil
	}
	for _, c := range cursors {
		if err := subjects.CheckCursor(c.Name); err != nil {
			return err
		}
		if isMirror && c.Txid > mark {
			return aheadError("cursor "+c.Name, c.Txid, s.partition, mark)
		}
		at := c.Time.UnixNano()
		if at <= 0 || !time.Unix(0, at).Equal(c.Time) {
			return subjects.Errorf(subjects.BadRequest, "cursor %q: give the time at which it was set", c.Name)
		}
		steps = append(steps, wal.RestoreStep{Cursor: &wal.RestoredCursor{Name: []byte(c.Name), Txid: c.Txid, Time: at}})
	}
	return s.propose(steps...)
}

func (s *restorer) notRestoring() error {
	return subjects.Errorf(subjects.WrongLast, "partition %d is not being restored: begin first", s.partition)
}

// end ends the restore. A repeat of it changes nothing.
func (s *restorer) end(ctx context.Context, r *subjects.RestoreEnd) error {
	digest, err := parseDigest("end", r.Digest)
	if err != nil {
		return err
	}
	end := wal.RestoreEnd{Base: wal.Base{Txid: r.Txid, Digest: digest}}
	for _, p := range r.History {
		end.History = append(end.History, wal.PastCluster{ID: p.Cluster, LastTxid: p.LastTxid})
		if p.Cluster == s.cluster {
			return subjects.Errorf(subjects.BadRequest, "end.history: it names this cluster, %s", s.cluster)
		}
	}
	if err := s.group.VerifyLeader(ctx, s.requests.term()); err != nil {
		return err
	}
	s.state.mu.Lock()
	ended, may := s.state.hasEnded(&end), s.state.mayEnd(&end)
	var source string
	if s.state.isRestoring() {
		source = s.state.restoring.Cluster
	}
	s.state.mu.Unlock()
	if ended || may != nil {
		if ended {
			return nil
		}
		return may
	}
	if err := checkHistory(end.History, source, r.Txid); err != nil {
		return err
	}
	wasMirror := s.state.position().mirrorOf != ""
	if err := s.propose(wal.RestoreStep{End: &end}); err != nil {
		return err
	}
	if wasMirror {
		s.ended()
	}
	return nil
}

// loadAt is where a piece of the log belongs.
type loadAt struct {
	previous uint64 // the txid that the stream follows on
	offset   uint64 // bytes of the stream before the piece
}

// parseLoad returns where a piece of the log belongs, and whether the message
// is one.
func parseLoad(header []byte) (at loadAt, is bool, err error) {
	var hasPrevious bool
	err = subjects.ScanBlock(header, func(key, value []byte) (err error) {
		switch string(key) {
		case subjects.HeaderPrevious:
			at.previous, err = strconv.ParseUint(string(value), 10, 64)
			hasPrevious = true
		case subjects.HeaderOffset:
			at.offset, err = strconv.ParseUint(string(value), 10, 64)
			is = true
		}
		if err != nil {
			return subjects.Errorf(subjects.BadRequest, "%s %q is not a number", key, clip(value))
		}
		return nil
	})
	if err == nil && is != hasPrevious {
		err = subjects.Errorf(subjects.BadRequest, "a piece of the log has both %s and %s", subjects.HeaderPrevious, subjects.HeaderOffset)
	}
	return at, is, err
}

// load appends the batches that are whole by now, and keeps the rest until the
// next piece comes.
func (s *restorer) load(ctx context.Context, at loadAt, piece []byte) error {
	point := s.state.restorePoint()
	if !point.restoring {
		if err := s.group.VerifyLeader(ctx, s.requests.term()); err != nil {
			return err
		}
		return s.notRestoring()
	}
	if s.after != point.Txid || at.offset == 0 {
		s.piece, s.after = nil, point.Txid
	}
	if at.previous != point.Txid || at.offset != uint64(len(s.piece)) {
		return subjects.Errorf(subjects.WrongLast, "the piece follows byte %d after txid %d: the partition has %d bytes after txid %d; begin again, and go on where it is",
			at.offset, at.previous, len(s.piece), point.Txid)
	}
	rest := piece
	if len(s.piece) > 0 {
		rest = append(s.piece, piece...)
	}
	batches, rest, err := splitBatches(rest, point)
	if err != nil {
		return err
	}
	if len(rest) > maxPiece {
		return subjects.Errorf(subjects.TooLarge, "the batch after txid %d has more than %d bytes", point.Txid, maxPiece)
	}
	if s.refusesRecords(recordsVersion) != nil { // rarely: only then it matters what they have
		if refused := s.refusesRecords(recordsOf(batches)); refused != nil {
			return refused
		}
	}
	proposals := make([]raftstore.Proposal, len(batches))
	for i, b := range batches {
		proposals[i] = s.group.ProposeRestored(b)
	}
	for _, p := range proposals {
		if e := s.outcome(p); err == nil {
			err = e
		}
	}
	s.piece, s.after = append([]byte(nil), rest...), s.state.restorePoint().Txid
	if err == nil && len(batches) > 0 && s.state.position().mirrorOf != "" {
		s.feed(batches)
	}
	return err
}

// splitBatches returns the whole batches at the front of a stream, which must
// follow on a point, and the rest.
func splitBatches(stream []byte, at restorePoint) (batches [][]byte, rest []byte, err error) {
	for {
		n, size := binary.Uvarint(stream)
		switch {
		case size < 0 || n > maxPiece:
			return nil, nil, subjects.Errorf(subjects.BadRequest, "what follows txid %d is not the length of a batch, or more than %d", at.Txid, maxPiece)
		case size == 0 || n > uint64(len(stream)-size):
			return batches, stream, nil
		}
		b := stream[size : size+int(n) : size+int(n)]
		if at.Txid, at.time, err = checkRestored(b, at.Base, at.time); err != nil {
			return nil, nil, err
		}
		batches, stream = append(batches, b), stream[size+int(n):]
	}
}
