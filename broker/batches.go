package broker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// batchAnswer is the answer to a request for batches as they are in the log. It
// is a stream of bytes, which messages cut anywhere: each batch's length, as a
// varint, and its bytes. So a batch may be larger than a message.
//
// It is limited, paced, refused and ended like the answer to a read. What a
// read counts in transactions it counts in bytes of the stream.
type batchAnswer struct {
	readAnswer
	message []byte // the next one of the stream; not sent yet
	total   int    // bytes of the stream, those in message included
}

// serveBatches answers with batches on the leader.
func (r *reader) serveBatches(ctx context.Context, m *natslink.Message) error {
	q, err := parseBatchQuery(m.Payload)
	if err != nil {
		return err
	}
	at := r.position()
	if at.restoring {
		return errRestoring(r.partition)
	}
	if q.from > at.mark+1 {
		return aheadError("from", q.from, r.partition, at.mark)
	}
	return r.readBatches(ctx, m.Reply, q)
}

// parseBatchQuery parses a request for batches, which takes some of the fields
// of a read.
func parseBatchQuery(body []byte) (query, error) {
	var takes struct {
		From     json.RawMessage `json:"from"`
		MaxBytes json.RawMessage `json:"max_bytes"`
		Wait     json.RawMessage `json:"wait"`
	}
	if err := smallJSON(body, &takes); err != nil {
		return query{}, err
	}
	return parseQuery(body)
}

// readBatches answers a query: the batches from the one on that holds q.from,
// then the end.
func (r *reader) readBatches(ctx context.Context, reply string, q query) error {
	a := batchAnswer{readAnswer: readAnswer{
		reader: r, q: q, reply: reply, next: q.from, done: answerProgress{next: q.from},
		most:  min(readChunk, r.nats.MaxPayload()-chainRoom),
		paced: paced{pacer: r.pacer, reply: reply},
	}}
	timer := time.NewTimer(q.wait)
	defer timer.Stop()
	for {
		at := r.position()
		if at.restoring {
			return a.stop(ctx, errRestoring(r.partition), at.mark)
		}
		if a.next < at.first {
			return a.stop(ctx, wal.ErrTrimmed, at.mark)
		}
		if err := a.scan(ctx, at); err != nil {
			return a.stop(ctx, err, at.mark)
		}
		if a.total > 0 || a.next <= at.mark || q.wait == 0 {
			return a.finish(ctx, at.mark)
		}
		over, err := a.await(ctx, at, timer.C)
		switch {
		case err != nil:
			return err
		case over:
			return a.finish(ctx, r.position().mark)
		}
	}
}

// scan sends the batches from next up to a position, up to the query's limit.
func (a *batchAnswer) scan(ctx context.Context, at position) error {
	if a.next > at.mark {
		return nil
	}
	if err := a.acquireScan(ctx); err != nil {
		return err
	}
	defer a.releaseScan()
	for _, b := range a.reader.store.Batches(a.next, at.index) {
		if b.Err != nil {
			return b.Err
		}
		data := b.Batch.Bytes()
		length := binary.AppendUvarint(nil, uint64(len(data)))
		size := len(length) + len(data)
		if a.total > 0 && a.total+size > a.q.maxBytes {
			return nil
		}
		for _, part := range [][]byte{length, data} {
			if err := a.add(ctx, part); err != nil {
				return err
			}
		}
		a.last = b.Batch.Last()
		a.next = a.last + 1
		if a.next > at.mark {
			return nil
		}
	}
	return nil
}

// add adds bytes to the stream, and sends each message that is full once more
// bytes follow.
func (a *batchAnswer) add(ctx context.Context, part []byte) error {
	for len(part) > 0 {
		if len(a.message) == a.most {
			if err := a.sendFull(ctx); err != nil {
				return err
			}
		}
		n := min(len(part), a.most-len(a.message))
		a.message = append(a.message, part[:n]...)
		a.total += n
		part = part[n:]
	}
	return nil
}

// sendFull sends the message while the answer does not count among the scans.
func (a *batchAnswer) sendFull(ctx context.Context) error {
	if err := a.wanted(ctx); err != nil {
		return err
	}
	a.releaseScan()
	if err := a.send(ctx); err != nil {
		return err
	}
	return a.acquireScan(ctx)
}

// send sends the message, once the client is not too far behind with what was
// sent to it before.
func (a *batchAnswer) send(ctx context.Context) error {
	if len(a.message) == 0 {
		return nil
	}
	var space [chainRoom]byte
	h := subjects.AppendBlockEnd(appendPrevious(subjects.AppendBlockStart(space[:0]), uint64(a.done.sent)))
	a.out = natslink.AppendHPub(a.out[:0], a.reply, h, a.message)
	if err := a.paced.wait(ctx, len(a.out)); err != nil {
		return err
	}
	if err := a.transmit(a.out); err != nil {
		return err
	}
	a.message = a.message[:0]
	a.done = answerProgress{a.total, a.last, a.next}
	return nil
}

// finish sends the rest of the stream, and its end.
func (a *batchAnswer) finish(ctx context.Context, mark uint64) error {
	if err := a.send(ctx); err != nil {
		return a.stop(ctx, err, mark)
	}
	return a.end(mark)
}

// stop ends an answer because of an error, like that of a read. The last batch
// may have been sent in part.
func (a *batchAnswer) stop(ctx context.Context, err error, mark uint64) error {
	if errors.Is(err, errNoSubscriber) {
		return err
	}
	_ = a.send(ctx) // or what it has sent before is the answer
	if a.done.sent == 0 {
		return err
	}
	return a.end(mark)
}

func (a *batchAnswer) end(mark uint64) error {
	a.reader.metrics.read(int(a.done.next - a.q.from))
	return a.reader.answers.Send(appendEnd(nil, a.reply, a.reader.answeringCluster(a.q, a.reader.position()), a.done, mark))
}
