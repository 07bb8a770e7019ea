package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
)

// atomicInput is the most bytes of input of an append of several transactions:
// the largest max_payload that a NATS server can have.
const atomicInput = 64 << 20

// transactions reads the transactions of an atomic batch, and returns the
// payload of its message.
func (c *appendCmd) transactions(ctx context.Context, p *program) ([]byte, error) {
	data, err := c.input(ctx, p, "the transactions", atomicInput+1)
	if err != nil {
		return nil, err
	}
	if len(data) > atomicInput {
		return nil, usagef("the transactions have more than %d bytes: append fewer together", atomicInput)
	}
	lines, err := newLines(bytes.NewReader(data), "")
	if err != nil {
		return nil, err
	}
	var message []byte
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && lines.n > subjects.MaxBatch {
			return nil, usagef("there are more than %d transactions: append fewer together", subjects.MaxBatch)
		}
		var t *transaction
		if err == nil {
			t, err = decodeTransaction(line)
		}
		if err == nil {
			err = c.checkPart(t, line)
		}
		if err == nil {
			message, err = t.appendItem(message)
		}
		if err != nil {
			return nil, usagef("line %d: %w", lines.n, plain(err))
		}
	}
	if lines.n == 0 {
		return nil, usagef(`there are no transactions: write a JSON object a line, such as {"kind":"booked","write_locks":["desk.12"],"payload":"alice"}`)
	}
	return message, nil
}

// checkPart checks a transaction of an atomic batch.
func (c *appendCmd) checkPart(t *transaction, line []byte) error {
	_, named := namedPartition(line)
	if named || t.Txid != 0 || !t.Time.IsZero() || t.MsgID != "" || t.SessionSeq > 0 || t.HighWaterMark != nil || t.Atomic != nil {
		return errors.New("with --atomic a line has payload or payload_base64, kind, write_locks, read_locks, append_locks, headers; leave out the others: " +
			"--hwm, --id, --session, --unless and --expected-last are for all lines, and the log assigns txids and times")
	}
	if c.HWM == nil && len(t.WriteLocks)+len(t.ReadLocks) > 0 {
		return errors.New("write_locks and read_locks " + needMark)
	}
	return nil
}

// appendItem appends the transaction as it is in a batch message, with the
// locks, the kind and the headers of its writer.
func (t *transaction) appendItem(dst []byte) ([]byte, error) {
	stored := *t
	stored.HighWaterMark = new(uint64) // it is given for the whole
	if _, err := storedTransaction(&stored); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = subjects.AppendBlockStart(dst)
	if t.Kind != "" {
		dst = subjects.AppendField(dst, subjects.HeaderKind, t.Kind)
	}
	dst = subjects.AppendLocks(dst, subjects.HeaderWriteLock, t.WriteLocks...)
	dst = subjects.AppendLocks(dst, subjects.HeaderReadLock, t.ReadLocks...)
	dst = subjects.AppendLocks(dst, subjects.HeaderAppendLock, t.AppendLocks...)
	for _, h := range t.Headers {
		dst = subjects.AppendField(dst, h.key, h.value)
	}
	dst = subjects.AppendBlockEnd(dst)
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-8))
	binary.BigEndian.PutUint32(dst[start+4:], uint32(t.size()))
	return t.appendPayload(dst), nil
}

// makeAtomic makes the request of one transaction one of an atomic batch.
func (c *appendCmd) makeAtomic(ctx context.Context, l *natsConn, msg *nats.Msg) error {
	msg.Header.Del(subjects.HeaderKind)
	msg.Header.Set(subjects.HeaderAtomic, "true")
	n, _ := strconv.Atoi(c.Partition) // checkArgs has checked it
	if c.Key != "" {
		info, err := l.cluster(ctx)
		if err != nil {
			return err
		}
		n = subjects.PartitionOf(c.Key, info.Partitions)
	}
	msg.Subject = l.names.Batch(n)
	if most := l.nc.MaxPayload(); int64(len(msg.Data)) > most {
		return usagef("the transactions have %d bytes with their headers: the NATS server takes at most %d (its max_payload), so append fewer or smaller ones together", len(msg.Data), most)
	}
	return nil
}
