package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/backup"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// logMirror mirrors one partition. It keeps nothing of its own: whatever goes
// wrong, on either side, it begins again where the partition is. A batch that
// does not follow on what is there changes nothing, so two mirrors at once do
// no harm.
//
// The source's digest is compared again and again: at once if both logs end at
// the same transaction, and else when the mirror gets there.
type logMirror struct {
	loader
	source  *backupSource
	cluster string // the source's id
	self    string // the mirror's
	cursor  string // which is moved at the source, "" for none
	once    bool
	note    func(format string, args ...any)
	quiet   bool
	metrics *mirrorMetrics

	begun    bool // the partition is a mirror
	expected wal.Base
	compared uint64                 // up to which transaction the digest was the source's
	end      subjects.PartitionInfo // of the source, when it was last asked
	mark     uint64                 // the source's high-water mark, as last heard
	lastTime time.Time              // of the last transaction that was sent
	counted  uint64                 // up to which transaction the delay is in the metrics

	cursors  []subjects.CursorPosition // the source's, as last heard
	due      bool                      // cursors are to be set
	asked    time.Time                 // when the source was last asked for its end and its cursors
	troubled bool                      // the last attempt has failed
	level    bool

	shown       time.Time // when progress was last shown
	shownBehind bool      // and that the mirror is behind

	transactions uint64
	bytes        int64
}

const (
	// mirrorWait is how long a request waits at the end of the source's log.
	mirrorWait = 2 * time.Second
	// mirrorLook is how often the source's cursors and its digest are looked at.
	mirrorLook = time.Second
	// mirrorPatience is how long a mirror that is to end goes on without
	// progress.
	mirrorPatience = time.Minute
	mirrorPause    = 250 * time.Millisecond
)

// run mirrors until ctx ends, the mirror can't go on, or, with once, it is
// level.
func (m *logMirror) run(ctx context.Context) error {
	for since, moved := time.Now(), m.at.txid; ; {
		err := m.attempt(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if m.at.txid != moved {
			since, moved = time.Now(), m.at.txid
		}
		if err == nil || !m.goesOn(err) || m.once && time.Since(since) > mirrorPatience {
			if err != nil {
				err = fmt.Errorf("partition %d: %w", m.partition, m.explain(err))
			}
			return err
		}
		m.metrics.failed(m)
		if !m.troubled {
			m.troubled = true
			side := "the mirror"
			if _, ok := errors.AsType[*sourceError](err); ok {
				side = "the source"
			}
			m.note("partition %d: %s: %s; trying again", m.partition, side, errorText(m.explain(err)))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(mirrorPause):
		}
	}
}

// sourceError is an error of a request to the source.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// explain rewords an error for the user.
func (m *logMirror) explain(err error) error {
	conn := m.conn
	if e, ok := errors.AsType[*sourceError](err); ok {
		conn, err = m.source.conn, e.err
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return failf(exitUnavailable, "there is no leader at the moment")
	}
	return conn.explain(err)
}

// goesOn reports whether another attempt may succeed.
func (m *logMirror) goesOn(err error) bool {
	return restoreGoesOn(err) || isTransient(err) || errors.Is(err, errLost)
}

// fromSource asks the leader of the source's partition.
func (m *logMirror) fromSource(ctx context.Context, subject string, request, answer any) error {
	if err := m.source.conn.ask(ctx, subject, request, answer); err != nil {
		return &sourceError{err}
	}
	return nil
}

// attempt mirrors from where the partition is.
func (m *logMirror) attempt(ctx context.Context) error {
	m.stream, m.cursors, m.due, m.asked = m.stream[:0], nil, false, time.Time{}
	if err := m.look(ctx); err != nil {
		return err
	}
	if err := m.begin(ctx); err != nil {
		return err
	}
	if err := m.compare(ctx); err != nil {
		return err
	}
	for {
		if err := m.load(ctx); err != nil {
			return err
		}
		if m.troubled {
			m.troubled = false
			m.note("partition %d: going on, at txid %d", m.partition, m.at.txid)
		}
		ended, err := m.attend(ctx)
		m.metrics.observe(m)
		m.show()
		if err != nil || ended {
			return err
		}
	}
}

// look asks the source for the end of its log.
func (m *logMirror) look(ctx context.Context) error {
	names := m.source.conn.names
	var cluster subjects.ClusterInfo
	if err := m.fromSource(ctx, names.Info(), nil, &cluster); err != nil {
		return err
	}
	if cluster.ID != m.cluster {
		return failf(exitFailed, "the cluster at --from is %s now, and was %s: it is another one, or was restored; mirror it into a new cluster, or promote this mirror", cluster.ID, m.cluster)
	}
	var end subjects.PartitionInfo
	if err := m.fromSource(ctx, names.PartitionInfo(m.partition), nil, &end); err != nil {
		return err
	}
	switch {
	case end.MirrorOf != "":
		return failf(exitFailed, "the source is itself a mirror, of cluster %s: mirror that one, or promote it", end.MirrorOf)
	case end.Restoring:
		return failf(exitUnavailable, "the source is being restored")
	}
	m.end, m.mark = end, end.HighWaterMark
	return nil
}

// begin makes the partition a mirror, unless it is one.
func (m *logMirror) begin(ctx context.Context) error {
	is, err := m.find(ctx)
	if err == nil && !is {
		err = m.make(ctx)
	}
	if err == nil {
		m.begun, m.expected = true, wal.Base{Txid: m.at.txid, Digest: m.at.digest}
	}
	return err
}

// find asks the partition where it is, if it is a mirror of the source. The
// error says why it can't become one.
func (m *logMirror) find(ctx context.Context) (is bool, err error) {
	var info subjects.PartitionInfo
	if err := m.conn.ask(ctx, m.conn.names.PartitionInfo(m.partition), nil, &info); err != nil {
		return false, err
	}
	past := len(info.History)
	switch {
	case info.MirrorOf == m.cluster:
		digest, err := m.parseDigest(info.Digest)
		m.at = logEnd{txid: info.HighWaterMark, digest: digest}
		return true, err
	case info.MirrorOf != "":
		return false, failf(exitConflict, "it mirrors cluster %s, and --from leads to %s: is the address right?", info.MirrorOf, m.cluster)
	case past > 0 && info.History[past-1].Cluster == m.cluster && !info.Restoring:
		return false, failf(exitConflict, "it was promoted, or restored, after txid %d, and is not a mirror: mirror into a new cluster", info.History[past-1].LastTxid)
	}
	return false, nil
}

// make makes the partition a mirror, from the oldest transaction on that the
// source has.
func (m *logMirror) make(ctx context.Context) error {
	begin := subjects.RestoreBegin{Cluster: m.cluster, Mirror: true, History: m.end.History}
	if first := m.end.FirstTxid; first > 1 {
		// The time of the transaction before it is not known: it was before that
		// one, or long ago.
		begin.Txid, begin.Digest, begin.Time = first-1, m.end.BaseDigest, time.Unix(0, 1).UTC()
		if m.end.HighWaterMark >= first {
			_, err := m.source.page(ctx, m.partition, subjects.BatchesRequest{From: first, MaxBytes: 1}, func(b wal.Batch) (bool, error) {
				begin.Time = time.Unix(0, max(1, b.Time-1)).UTC()
				return true, nil
			})
			if errors.Is(err, backup.ErrGap) {
				return &restartError{err} // trimmed meanwhile
			}
			if err != nil {
				return &sourceError{err}
			}
		}
	}
	return m.step(ctx, subjects.RestoreRequest{Begin: &begin})
}

// compare compares the end of the source's log with the mirror.
func (m *logMirror) compare(ctx context.Context) error {
	if m.at.txid > m.end.HighWaterMark { // another command may have been quicker
		if err := m.look(ctx); err != nil {
			return err
		}
	}
	switch {
	case m.at.txid > m.end.HighWaterMark:
		return failf(exitFailed, "the source ends at txid %d, and the mirror has %d: the source has lost transactions, or is an older copy; "+
			"find out which of the two counts: promote the mirror, or mirror into a new cluster", m.end.HighWaterMark, m.at.txid)
	case m.at.txid == m.end.HighWaterMark && hex.EncodeToString(m.at.digest[:]) != m.end.Digest:
		return m.differs()
	case m.at.txid == m.end.HighWaterMark:
		m.compared = m.at.txid
	}
	return nil
}

func (m *logMirror) differs() error {
	return failf(exitFailed, "at txid %d the source has the digest %.12s, and the mirror another: they are two logs; mirror into a new cluster", m.end.HighWaterMark, m.end.Digest)
}

// load loads what the source has, up to the limits of one request.
func (m *logMirror) load(ctx context.Context) error {
	if m.at.txid+1 < m.end.FirstTxid {
		return m.trimmed()
	}
	request := subjects.BatchesRequest{From: m.at.txid + 1, MaxBytes: subjects.MaxReadBytes}
	if m.at.txid >= m.mark && !m.once {
		request.Wait = mirrorWait.String()
	}
	var failed error // of the mirror
	mark, err := m.source.page(ctx, m.partition, request, func(b wal.Batch) (bool, error) {
		failed = m.take(ctx, b)
		return false, failed
	})
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, backup.ErrGap):
		return m.trimmed()
	case err != nil:
		return &sourceError{err}
	}
	m.mark = max(m.mark, mark)
	if err := m.flush(ctx); err != nil {
		return err
	}
	if m.at.txid != m.expected.Txid || m.at.digest != m.expected.Digest {
		return &restartError{fmt.Errorf("the mirror is at txid %d, and was sent what follows up to %d", m.at.txid, m.expected.Txid)}
	}
	return nil
}

func (m *logMirror) trimmed() error {
	return failf(exitFailed, "the mirror ends at txid %d, and the source was trimmed beyond: it can't go on; "+
		"mirror into a new cluster, which begins where the source does; a policy that trims the source can wait for a mirror: see --cursor", m.at.txid)
}

// take adds a batch of the source to what is sent.
func (m *logMirror) take(ctx context.Context, b wal.Batch) error {
	if b.First != m.expected.Txid+1 {
		return failf(exitFailed, "after txid %d the source has a batch that begins with %d: they are two logs; mirror into a new cluster", m.expected.Txid, b.First)
	}
	m.expected = wal.Base{Txid: b.Last(), Digest: m.expected.Digest.Next(b.Bytes())}
	if b.Last() == m.end.HighWaterMark {
		if hex.EncodeToString(m.expected.Digest[:]) != m.end.Digest {
			return m.differs()
		}
		m.compared = b.Last()
	}
	m.mark = max(m.mark, b.Last())
	m.bytes += int64(len(b.Bytes()))
	m.transactions += uint64(b.Count)
	m.lastTime = time.Unix(0, b.Time+int64(b.Count)-1)
	m.metrics.transactions.Add(float64(b.Count))
	m.metrics.bytes.Add(float64(len(b.Bytes())))
	return m.add(ctx, b.Bytes())
}

// arrived is called when the partition has answered where it is.
func (m *logMirror) arrived() {
	m.metrics.arrived(m)
	m.show()
}

// attend looks at the source's end and its cursors from time to time, and sets
// the cursors. It reports whether the mirror is to end.
func (m *logMirror) attend(ctx context.Context) (ended bool, err error) {
	if m.due {
		if err := m.bringCursors(ctx); err != nil {
			return false, err
		}
		if err := m.moveCursor(ctx); err != nil {
			return false, err
		}
		if m.once && m.at.txid >= m.end.HighWaterMark {
			return true, nil
		}
	}
	if m.due || time.Since(m.asked) < mirrorLook && !(m.once && m.at.txid >= m.end.HighWaterMark) {
		return false, nil
	}
	if m.cursors, err = m.source.Cursors(ctx, m.partition); err != nil {
		return false, &sourceError{err}
	}
	if err := m.look(ctx); err != nil {
		return false, err
	}
	m.due, m.asked = true, time.Now()
	// Another command may have brought it further, or promoted it.
	if err := m.begin(ctx); err != nil {
		return false, err
	}
	return false, m.compare(ctx)
}

// bringCursors sets the cursors that are not as they are at the source. Those
// past the mirror's end are set to that end, as a restore sets them: a mirror
// that is promoted before it has caught up has them too.
func (m *logMirror) bringCursors(ctx context.Context) error {
	m.due = false
	have, err := newBackupSource(m.conn).Cursors(ctx, m.partition)
	if err != nil {
		return err
	}
	here := make(map[string]subjects.CursorPosition, len(have))
	for _, c := range have {
		here[c.Name] = c
	}
	var changed []subjects.RestoredCursor
	for _, c := range m.cursors {
		if c.Txid == 0 {
			continue // a session's that has read nothing: here it does not exist
		}
		now := here[c.Name]
		if c.Txid = min(c.Txid, m.at.txid); c.Txid > 0 && (now.Time.Before(c.Time) || now.Time.Equal(c.Time) && now.Txid < c.Txid) {
			changed = append(changed, subjects.RestoredCursor{Name: c.Name, Txid: c.Txid, Time: c.Time})
		}
		delete(here, c.Name)
	}
	for _, c := range here { // removed there
		changed = append(changed, subjects.RestoredCursor{Name: c.Name, Time: c.Time})
	}
	return m.setCursors(ctx, changed)
}

// moveCursor moves the mirror's cursor at the source to what the mirror has, so
// that a retention policy there keeps what it has not got.
func (m *logMirror) moveCursor(ctx context.Context) error {
	if m.cursor == "" || m.at.txid == 0 {
		return nil
	}
	subject := m.source.conn.names.Cursor(m.partition, m.cursor)
	var at subjects.CursorReply
	if err := m.fromSource(ctx, subject, nil, &at); err != nil {
		return err
	}
	switch {
	case at.Txid > 0 && at.Owner != m.self:
		return failf(exitFailed, "the cursor %s at the source is at %d, and is not this mirror's: give each mirror a cursor of its own, "+
			"or, if nothing else uses it, remove it there: nats req %s '{\"txid\":0}'", m.cursor, at.Txid, subject)
	case at.Txid >= m.at.txid:
		return nil
	}
	to := m.at.txid
	err := m.fromSource(ctx, subject, subjects.CursorRequest{Txid: &to, Expected: &at.Txid, Owner: &m.self}, new(subjects.CursorReply))
	if refusal, ok := errors.AsType[*subjects.Error](err); ok && refusal.Reason == subjects.WrongLast {
		return nil // another command has moved it
	}
	return err
}

// behind returns how many transactions the source has that the mirror has not.
func (m *logMirror) behind() uint64 { return max(m.mark, m.at.txid) - m.at.txid }

// isLevel reports whether the mirror has all that the source has, with the same
// digest.
func (m *logMirror) isLevel() bool {
	isThere := m.at.txid == m.expected.Txid && m.at.digest == m.expected.Digest
	return m.begun && isThere && m.behind() == 0 && m.compared == m.at.txid
}

// show shows how far the mirror is: every few seconds while it is behind, and
// once when it is level.
func (m *logMirror) show() {
	was := m.level
	m.level = m.isLevel()
	late := time.Since(m.shown) > 2*time.Second
	switch {
	case m.quiet || !m.begun:
	case m.level && (m.shownBehind || !was && late):
		m.shown, m.shownBehind = time.Now(), false
		m.note("partition %d: level at txid %d", m.partition, m.at.txid)
	case m.behind() > 0 && late:
		m.shown, m.shownBehind = time.Now(), true
		m.note("partition %d: txid %d of %d", m.partition, m.at.txid, m.mark)
	}
}

func (m *logMirror) result(took time.Duration) mirrorResult {
	return mirrorResult{
		Partition: m.partition, LastTxid: m.at.txid, Digest: hex.EncodeToString(m.at.digest[:]), Behind: m.behind(), level: m.isLevel(),
		Transactions: m.transactions, Bytes: m.bytes, Seconds: took.Seconds(),
	}
}
