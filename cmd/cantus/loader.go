package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// loader loads batches into a partition, by the steps of a restore.
type loader struct {
	conn      *natsConn
	partition int
	at        logEnd // where the partition is
	stream    []byte // what is to be sent next
	moved     func() // called when the partition has answered where it is
}

// logEnd is the end of a partition, with the digest there.
type logEnd struct {
	txid   uint64
	digest wal.Digest
	joined int // bytes that the leader has beyond
}

const (
	// restorePiece is about how many bytes are sent at once.
	restorePiece = 512 << 10
	// restoreCursors is how many cursors are set at once.
	restoreCursors = 200
)

// restartError is a refusal after which a restore begins again.
type restartError struct{ err error }

func (e *restartError) Error() string { return e.err.Error() }
func (e *restartError) Unwrap() error { return e.err }

func (l *loader) subject() string {
	return l.conn.names.Admin("restore", strconv.Itoa(l.partition))
}

// step sends a step, and notes how far the partition is then.
func (l *loader) step(ctx context.Context, step subjects.RestoreRequest) error {
	var reply subjects.RestoreReply
	if err := l.conn.ask(ctx, l.subject(), step, &reply); err != nil {
		return err
	}
	return l.arrived(reply)
}

func (l *loader) arrived(reply subjects.RestoreReply) error {
	digest, err := l.parseDigest(reply.Digest)
	if err != nil {
		return err
	}
	l.at = logEnd{reply.HighWaterMark, digest, reply.Joined}
	l.moved()
	return nil
}

func (l *loader) parseDigest(text string) (d wal.Digest, err error) {
	digest, err := hex.DecodeString(text)
	if err != nil || len(digest) != len(d) {
		return d, fmt.Errorf("the leader of partition %d answers with the digest %q", l.partition, text)
	}
	return wal.Digest(digest), nil
}

// add adds a batch to the stream, and sends what is a piece of it.
func (l *loader) add(ctx context.Context, batch []byte) error {
	l.stream = append(binary.AppendUvarint(l.stream, uint64(len(batch))), batch...)
	for len(l.stream) >= restorePiece {
		if err := l.send(ctx); err != nil {
			return err
		}
	}
	return nil
}

// flush sends the rest of the stream.
func (l *loader) flush(ctx context.Context) error {
	for len(l.stream) > 0 {
		if err := l.send(ctx); err != nil {
			return err
		}
	}
	return nil
}

// send sends a piece of the stream.
func (l *loader) send(ctx context.Context) error {
	most := min(restorePiece, int(l.conn.nc.MaxPayload())-1024)
	piece := l.stream[:min(most, len(l.stream))]
	m := nats.NewMsg(l.subject())
	m.Data = piece
	m.Header.Set(subjects.HeaderPrevious, strconv.FormatUint(l.at.txid, 10))
	m.Header.Set(subjects.HeaderOffset, strconv.Itoa(l.at.joined))
	answer, err := l.conn.request(ctx, m)
	if err != nil {
		return err
	}
	if e := refused(answer); e != nil {
		err := refusal(e)
		if e.Reason == subjects.WrongLast {
			err = &restartError{err} // another leader has not joined what this one has
		}
		return err
	}
	var reply subjects.RestoreReply
	if err := json.Unmarshal(answer.Data, &reply); err != nil {
		return err
	}
	if err := l.arrived(reply); err != nil {
		return err
	}
	l.stream = l.stream[:copy(l.stream, l.stream[len(piece):])]
	return nil
}

// setCursors sets cursors, some at a time.
func (l *loader) setCursors(ctx context.Context, all []subjects.RestoredCursor) error {
	for len(all) > 0 {
		n := min(len(all), restoreCursors)
		if err := l.step(ctx, subjects.RestoreRequest{Cursors: all[:n]}); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}
