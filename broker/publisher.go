package broker

import (
	"bytes"
	"crypto/ed25519"
	"log/slog"
	"time"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/subjects"
	"github.com/cantuslog/cantus/wal"
)

// publisher is the last stage of a tenure: it publishes committed transactions
// on the feed's subjects.
type publisher struct {
	partition int
	names     subjects.Names
	packed    string // subject of the packed feed
	log       *slog.Logger
	enc       encoder
	key       ed25519.PrivateKey // of the packed feed
	nats      feedInfo
	feeds     transmitter
	metrics   *partitionMetrics
	// promotedAfter returns the last transaction that a mirror had when it was
	// promoted, 0 if it is not a promoted mirror.
	promotedAfter func() uint64

	committed <-chan *batch
}

// feedInfo is what a publisher asks of the NATS server.
type feedInfo interface {
	MaxPayload() int
	MayHaveInterest(subject string) bool
}

// run publishes batches in order. Those that wait share packed messages, and
// signatures.
func (p *publisher) run() {
	buf := make([]byte, 0, 2*feedPart)
	pack := signedPacker{subject: p.packed, partition: p.partition, key: p.key}
	last := uint64(0)
	for b := range p.committed {
		invariant.FeedInOrder.Check(b.first > last, b.first, last+1)
		last = b.first + uint64(len(b.passed)) - 1
		b.number()
		pack.most = min(feedPart, p.nats.MaxPayload()-feedRoom)
		withheld := p.withholds(b)
		if !withheld && p.nats.MayHaveInterest(p.packed) {
			p.publishPacked(b, &pack, buf)
		}
		if len(p.committed) == 0 {
			p.send(pack.finish(buf))
		}
		if !withheld {
			p.publish(b, buf)
			if b.tracer != nil {
				b.published = time.Now()
			}
		}
		b.done()
	}
}

// withholds reports whether a batch is the first one after a mirror's
// promotion. Without it, whoever follows the feed misses a transaction. So it
// reads, and is told that what comes now is of another cluster.
func (p *publisher) withholds(b *batch) bool {
	last := p.promotedAfter()
	return last > 0 && b.first == last+1
}

// publishLog publishes batches of a log, which must be well-formed: those that
// a mirror has got.
func (p *publisher) publishLog(batches [][]byte) {
	packed := p.nats.MayHaveInterest(p.packed)
	buf, single := make([]byte, 0, feedPart), make([]byte, 0, feedPart)
	pack := signedPacker{subject: p.packed, partition: p.partition, key: p.key, most: min(feedPart, p.nats.MaxPayload()-feedRoom)}
	var t wal.Transaction
	for _, data := range batches {
		b, err := wal.ParseBatch(data)
		if err != nil {
			return
		}
		for records := b.Read(); records.Next(&t); {
			if packed {
				if pack.add(&p.enc, &t); pack.full() {
					p.send(pack.sign(buf))
				}
			}
			if subject := p.names.Feed(p.partition, string(t.Kind)); p.nats.MayHaveInterest(subject) {
				single = p.enc.append(single, subject, &t, true)
			}
			if len(single) >= feedPart {
				p.send(single)
				single = single[:0]
			}
		}
	}
	p.send(pack.finish(buf))
	p.send(single)
}

// followed reports whether anybody subscribes to any of a batch's transactions.
func (p *publisher) followed(b *batch) bool {
	if len(b.passed) > 0 && p.nats.MayHaveInterest(p.packed) {
		return true
	}
	for i, r := range b.passed {
		if i > 0 && bytes.Equal(r.tx.Kind, b.passed[i-1].tx.Kind) {
			continue
		}
		if p.nats.MayHaveInterest(p.names.Feed(p.partition, string(r.tx.Kind))) {
			return true
		}
	}
	return false
}

// feedPart is about how many bytes are sent to the NATS server at once: it
// delivers the first transactions of a batch while later ones are encoded.
const feedPart = 16 << 10

// publishPacked packs a batch's transactions, and sends the packed messages
// once there are enough for a signature.
func (p *publisher) publishPacked(b *batch, pack *signedPacker, buf []byte) {
	for _, r := range b.passed {
		if pack.add(&p.enc, &r.tx); pack.full() {
			p.send(pack.sign(buf))
		}
	}
}

// publish publishes, one to a message, the transactions of a batch whose
// subject has a subscriber. They are encoded in buf as far as it has room.
func (p *publisher) publish(b *batch, buf []byte) {
	out := buf
	var wanted bool
	var subject string
	for i, r := range b.passed {
		if i == 0 || !bytes.Equal(r.tx.Kind, b.passed[i-1].tx.Kind) {
			subject = p.names.Feed(p.partition, string(r.tx.Kind))
			wanted = p.nats.MayHaveInterest(subject)
		}
		if !wanted {
			continue
		}
		out = p.enc.append(out, subject, &r.tx, true)
		if len(out) >= feedPart {
			p.send(out)
			out = out[:0]
		}
	}
	p.send(out)
}

func (p *publisher) send(out []byte) {
	if len(out) == 0 {
		return
	}
	if err := p.feeds.Send(out); err != nil {
		p.log.Debug("feed not sent", "err", err)
		return
	}
	p.metrics.fed.Add(float64(len(out)))
}
