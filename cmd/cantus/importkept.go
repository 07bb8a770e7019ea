package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// keptImport imports a file into an empty partition, as if the partition were
// restored from a backup: txids and times stay as they are. The file is encoded
// in the same batches each time that it is read, so the partition's digest says
// whether what is there is a beginning of the file.
type keptImport struct {
	*importer
	file *os.File
	log  keptLog // what the partition will be
}

// keptLog is a log that was made of a file.
type keptLog struct {
	base  wal.Base // before the first line
	time  int64    // before it, if its txid is not 1
	end   wal.Base
	lines uint64
	moved uint64 // lines whose time was not later than that of the line before
}

// keptBatch is a batch of transactions with their txids and times.
type keptBatch struct {
	data        []byte
	first, last uint64
}

// keep imports a file with its txids and times.
func (c *importCmd) keep(ctx context.Context, p *program) error {
	if c.File == "-" {
		return usagef("--keep reads the file more than once: name one, not -")
	}
	f, err := os.Open(c.File)
	if err != nil {
		return usagef("%w", err)
	}
	defer f.Close()
	k := &keptImport{importer: &importer{cmd: c, p: p, since: time.Now()}, file: f}
	// All lines are checked before anything is sent: a partition that is not
	// completed is never served.
	for _, err := range k.batches() {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return k.failed(ctx, err)
		}
	}
	if k.log.lines == 0 {
		return usagef("%s is empty: there is nothing to import", c.File)
	}
	if k.conn, err = c.open(ctx, "import"); err != nil {
		return k.failed(ctx, err)
	}
	defer k.conn.close()
	if err := k.retry(ctx, func() error { return k.load(ctx) }); err != nil {
		return k.failed(ctx, err)
	}
	if k.log.moved > 0 {
		p.note("%d lines were not later than the line before them: their times were moved on, and are in the header %s", k.log.moved, headerOriginalTime)
	}
	k.progress.line, k.progress.txid = k.log.lines, k.log.end.Txid
	return k.print(p)
}

// source names the import where a restore names the cluster of the backup.
func (k *keptImport) source() string { return "import-" + k.id }

// load sends what is missing in the partition.
func (k *keptImport) load(ctx context.Context) error {
	begin := subjects.RestoreBegin{Cluster: k.source(), Txid: k.log.base.Txid}
	if begin.Txid > 0 {
		begin.Digest, begin.Time = hex.EncodeToString(k.log.base.Digest[:]), time.Unix(0, k.log.time).UTC()
	}
	reply, err := k.step(ctx, subjects.RestoreRequest{Begin: &begin})
	if e, ok := errors.AsType[*subjects.Error](err); ok && e.Reason == subjects.WrongLast {
		complete, err := k.isComplete(ctx)
		if complete || err != nil {
			return err
		}
		return usagef("--keep needs an empty partition, or one in which an import of this file was begun; of partition %d: %s", k.cmd.Partition, e.Message)
	}
	if err != nil {
		return err
	}
	mark := max(reply.HighWaterMark, k.log.base.Txid)
	if there := mark - k.log.base.Txid; there > 0 {
		k.p.note("%d lines are in the log: going on after them", there)
	}
	if mark > k.log.end.Txid {
		return usagef("partition %d has %d lines of this import, and the file has %d: give one that has at least those", k.cmd.Partition, mark-k.log.base.Txid, k.log.lines)
	}
	if err := k.send(ctx, mark, reply.Digest); err != nil {
		return err
	}
	_, err = k.step(ctx, subjects.RestoreRequest{End: &subjects.RestoreEnd{
		Txid: k.log.end.Txid, Digest: hex.EncodeToString(k.log.end.Digest[:]),
		History: []subjects.PastCluster{{Cluster: k.source(), LastTxid: k.log.end.Txid}},
	}})
	return err
}

// isComplete reports whether the partition was completed by this import. It
// returns an error if what the import brought is not this file. The partition
// may have got more since.
func (k *keptImport) isComplete(ctx context.Context) (bool, error) {
	var info subjects.PartitionInfo
	if err := k.conn.ask(ctx, k.conn.names.PartitionInfo(int(k.cmd.Partition)), nil, &info); err != nil {
		return false, err
	}
	end, n := k.log.end, len(info.History)
	if info.Restoring || n == 0 || info.History[n-1] != (subjects.PastCluster{Cluster: k.source(), LastTxid: end.Txid}) {
		return false, nil
	}
	same := info.Digest == hex.EncodeToString(end.Digest[:])
	if info.HighWaterMark != end.Txid {
		var err error
		if same, err = k.isInLog(ctx); err != nil {
			return false, err
		}
	}
	if !same {
		return false, usagef("partition %d was made of a file with the same first line and as many lines, and is not this file: "+
			"give the file that was imported, or import this one into an empty partition", k.cmd.Partition)
	}
	return true, nil
}

// isInLog reports whether the partition begins with what the file says: its
// transactions make the same batches.
func (k *keptImport) isInLog(ctx context.Context) (bool, error) {
	e := &keptEncoder{log: &keptLog{}}
	r := &reader{
		cmd: &readCmd{Partition: k.cmd.Partition, connection: k.cmd.connection},
		p:   k.p, conn: k.conn, out: bufio.NewWriter(io.Discard), next: k.log.base.Txid + 1, last: k.log.end.Txid, bulk: true,
		visit: func(t *transaction) error {
			_, err := e.add(t)
			return err
		},
	}
	for done := false; !done; {
		var err error
		if done, err = r.step(ctx); err == nil {
			continue
		}
		if t, ok := errors.AsType[*subjects.Error](err); ok && t.Reason == subjects.Trimmed {
			return false, usagef("partition %d was made of a file with the same first line and as many lines; whether it was this one can't be told any more: "+
				"its transactions up to %d were trimmed", k.cmd.Partition, t.FirstTxid-1)
		}
		return false, err
	}
	e.finish()
	return e.checkEnd() == nil && e.log.end == k.log.end, nil
}

// send sends the batches after a txid, where the log must have a digest.
func (k *keptImport) send(ctx context.Context, mark uint64, digest string) error {
	at := k.log.base
	report := newProgress(k.p, "imported")
	defer func() { report.done(int(k.appended)) }()
	most := int(k.conn.nc.MaxPayload()) - 1024
	var message []byte
	previous, sent := mark, mark
	flush := func() error {
		if len(message) == 0 {
			return nil
		}
		for offset := 0; offset < len(message); offset += most { // in one piece, unless a single batch is larger
			m := nats.NewMsg(k.subject())
			m.Header.Set(subjects.HeaderPrevious, strconv.FormatUint(previous, 10))
			m.Header.Set(subjects.HeaderOffset, strconv.Itoa(offset))
			m.Data = message[offset:min(offset+most, len(message))]
			if _, err := k.request(ctx, m); err != nil {
				return err
			}
		}
		k.appended += sent - previous
		if k.first == 0 {
			k.first = previous + 1
		}
		message, previous = message[:0], sent
		report.at(int(k.appended), func() string { return fmt.Sprintf("up to transaction %d of %d", sent, k.log.end.Txid) })
		return nil
	}
	for b, err := range k.batches() {
		if err != nil {
			return err
		}
		before := at.Digest
		at = wal.Base{Txid: b.last, Digest: before.Next(b.data)}
		if b.last <= mark {
			continue
		}
		if b.first <= mark || b.first == mark+1 && mark > k.log.base.Txid && hex.EncodeToString(before[:]) != digest {
			return usagef("partition %d has the beginning of another file under this import's name: give the file that the import was begun with", k.cmd.Partition)
		}
		if len(message)+len(b.data)+binary.MaxVarintLen32 > most {
			if err := flush(); err != nil {
				return err
			}
		}
		message = append(binary.AppendUvarint(message, uint64(len(b.data))), b.data...)
		sent = b.last
	}
	return flush()
}

func (k *keptImport) subject() string {
	return k.conn.names.Admin("restore", strconv.Itoa(int(k.cmd.Partition)))
}

// step sends a step of the restore.
func (k *keptImport) step(ctx context.Context, r subjects.RestoreRequest) (reply subjects.RestoreReply, err error) {
	m := nats.NewMsg(k.subject())
	if m.Data, err = json.Marshal(r); err != nil {
		return reply, err
	}
	return k.request(ctx, m)
}

// request sends a message of the restore. Every error that may pass has the
// status exitUnavailable: each step may be sent again.
func (k *keptImport) request(ctx context.Context, m *nats.Msg) (reply subjects.RestoreReply, err error) {
	k.sent = true
	answer, err := k.conn.request(ctx, m)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return reply, k.conn.noOperator(ctx, int(k.cmd.Partition))
	case errors.Is(err, nats.ErrMaxPayload):
		return reply, err
	case err != nil:
		return reply, failf(exitUnavailable, "%w", err)
	}
	if e := refused(answer); e != nil {
		if e.Reason == subjects.WrongLast && m.Header.Get(subjects.HeaderOffset) != "" {
			return reply, failf(exitUnavailable, "%w", e) // another leader: begin again
		}
		return reply, refusal(e)
	}
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return reply, fmt.Errorf("the reply is no JSON that this version knows: %w", err)
	}
	k.since = time.Now()
	return reply, nil
}

// storedTransaction returns a transaction as a log stores it.
func storedTransaction(t *transaction) (*wal.Transaction, error) {
	for i := range t.Headers { // as in an append
		t.Headers[i].value = strings.Trim(t.Headers[i].value, blanks)
	}
	stored := &wal.Transaction{Kind: []byte(t.Kind), Payload: t.appendPayload(nil), Header: t.Headers.lines()}
	if t.Kind == "" {
		stored.Kind = []byte(subjects.DefaultKind)
	}
	if err := subjects.CheckKind(string(stored.Kind)); err != nil {
		return nil, err
	}
	size := len(stored.Payload) + len(stored.Header) + 256
	for _, mode := range []struct {
		mode  wal.LockMode
		names []string
	}{{wal.WriteLock, t.WriteLocks}, {wal.ReadLock, t.ReadLocks}, {wal.AppendLock, t.AppendLocks}} {
		for _, name := range mode.names {
			if err := checkLockName(name); err != nil {
				return nil, err
			}
			stored.Locks = append(stored.Locks, wal.Lock{Mode: mode.mode, Name: []byte(name)})
			size += len(name) + 1
		}
	}
	if n := len(stored.Locks); n > subjects.MaxLocks {
		return nil, fmt.Errorf("%d locks: at most %d are allowed", n, subjects.MaxLocks)
	}
	if t.HighWaterMark != nil {
		stored.HasHighWaterMark, stored.HighWaterMark = true, *t.HighWaterMark
	} else if len(t.WriteLocks)+len(t.ReadLocks) > 0 {
		return nil, errors.New("it has write or read locks and no high_water_mark")
	}
	for _, h := range t.Headers {
		if err := checkHeader(h); err != nil {
			return nil, err
		}
	}
	if t.MsgID != "" {
		if err := checkMsgID(t.MsgID); err != nil {
			return nil, err
		}
		stored.MsgID = []byte(t.MsgID)
	}
	if t.SessionSeq > 0 {
		stored.Session, stored.SessionSeq = []byte(t.Session), t.SessionSeq
	}
	if t.Move != "" {
		move, err := subjects.ParseMove(t.Move)
		if err != nil {
			return nil, plain(err)
		}
		stored.Cursor, stored.CursorTxid = []byte(move.Cursor), move.Txid
	}
	if n := len(t.Headers) + 6; n > subjects.MaxHeaders {
		return nil, fmt.Errorf("it has up to %d headers with those for its locks: at most %d are allowed", n, subjects.MaxHeaders)
	}
	if size > subjects.MaxTransaction {
		return nil, fmt.Errorf("it has about %d bytes: at most %d are allowed", size, subjects.MaxTransaction)
	}
	return stored, nil
}

func (t *transaction) hasHeader(key string) bool {
	for _, h := range t.Headers {
		if h.key == key {
			return true
		}
	}
	return false
}

func checkLockName(name string) error {
	if strings.Contains(name, ",") {
		return fmt.Errorf("lock %q holds a comma", name)
	}
	return subjects.CheckLock(name)
}

// blanks are cut off around the value of a header.
const blanks = " \t"

func checkMsgID(id string) error {
	if subjects.CheckMsgID(id) != nil || strings.ContainsAny(id, "\r\n\x00") || strings.Trim(id, blanks) != id {
		return fmt.Errorf("msg_id is not a message id: 1 to %d bytes without CR, LF or NUL, and without white space around them", subjects.MaxMsgID)
	}
	return nil
}

// checkHeader checks a line of an application's headers.
func checkHeader(h header) error {
	switch treatment, err := subjects.CheckOtherHeader(h.key); {
	case err != nil:
		return err
	case treatment != subjects.Stored:
		return fmt.Errorf("header %q is NATS's own, and is not stored", h.key)
	case len(h.key) > subjects.MaxHeaderName || h.key == "" || strings.IndexFunc(h.key, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }) >= 0:
		return fmt.Errorf("header %q: a name is 1 to %d characters of visible ASCII without a colon", h.key, subjects.MaxHeaderName)
	case strings.ContainsAny(h.value, "\r\n\x00"):
		return fmt.Errorf("header %q: its value has CR, LF or NUL", h.key)
	}
	return nil
}
