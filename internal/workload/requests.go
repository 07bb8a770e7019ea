package workload

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
)

// Batch appends transactions with one message, and returns the high-water mark.
// A refusal is not an error.
func (c *Client) Batch(ctx context.Context, partition int, msgs []*nats.Msg) (mark uint64, err error) {
	m := nats.NewMsg(fmt.Sprintf("cantus.batch.%d", partition))
	o := &judge.Operation{}
	for _, tx := range msgs {
		m.Data = appendFrame(m.Data, tx)
		o.Batch = append(o.Batch, *sentTransaction(tx))
	}
	r, err := c.sendBatch(ctx, partition, m, o)
	return r.HighWaterMark, err
}

// wholeHeaders are the headers that are given for an atomic batch as a whole.
var wholeHeaders = []string{"Cantus-High-Water-Mark", "Cantus-Unless", "Nats-Msg-Id", "Cantus-Session", "Cantus-Session-Seq", "Cantus-Cursor",
	"Nats-Expected-Last-Sequence", "Cantus-Not-After"}

// Atomic appends transactions that commit together, with the headers of whole
// that are given for all of them. A refusal is not an error.
func (c *Client) Atomic(ctx context.Context, partition int, whole *nats.Msg, msgs []*nats.Msg) (Reply, error) {
	m := nats.NewMsg(fmt.Sprintf("cantus.batch.%d", partition))
	m.Header.Set("Cantus-Atomic", "true")
	for _, key := range wholeHeaders {
		if values := whole.Header[key]; values != nil {
			m.Header[key] = values
		}
	}
	o, of := &judge.Operation{Atomic: true}, sentTransaction(m)
	for i, tx := range msgs {
		t := nats.NewMsg("")
		t.Header, t.Data = maps.Clone(tx.Header), tx.Data
		for _, key := range wholeHeaders {
			t.Header.Del(key)
		}
		if m.Header.Get("Cantus-High-Water-Mark") == "" { // what is checked needs one
			t.Header.Del("Cantus-Write-Lock")
			t.Header.Del("Cantus-Read-Lock")
		}
		m.Data = appendFrame(m.Data, t)
		sent := sentTransaction(t)
		sent.Session, sent.SessionSeq = of.Session, of.SessionSeq
		if sent.HighWaterMark = number(m, "Cantus-High-Water-Mark"); i == 0 {
			sent.Move = of.Move
			sent.ID, sent.ExpectedLast, sent.Unless, sent.NotAfter = of.ID, of.ExpectedLast, of.Unless, of.NotAfter
		}
		o.Batch = append(o.Batch, *sent)
	}
	return c.sendBatch(ctx, partition, m, o)
}

// sendBatch sends a batch message, and records its answer.
func (c *Client) sendBatch(ctx context.Context, partition int, m *nats.Msg, o *judge.Operation) (Reply, error) {
	start := c.Recorder.Now()
	answer, err := c.Request(ctx, m)
	defer func() { c.Recorder.Add(c.Name, start, partition, o) }()
	if err != nil {
		o.Result = failed(err)
		return Reply{}, err
	}
	var r struct {
		Reply
		Results []struct {
			Reply
			Count int `json:"count"`
		} `json:"results"`
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return Reply{}, err
	}
	if r.Error != nil {
		o.Result = refusedBy(r.Error, &r.HighWaterMark)
		return r.Reply, nil
	}
	o.Outcome, o.HighWaterMark = judge.OK, &r.HighWaterMark
	for _, run := range r.Results {
		for i := range run.Count {
			if run.Error != nil {
				o.Results = append(o.Results, refusedBy(run.Error, nil))
				continue
			}
			o.Results = append(o.Results, judge.Result{Outcome: judge.OK, Txid: run.Txid + uint64(i), Time: nanoseconds(run.Time) + int64(i), Duplicate: run.Duplicate})
		}
	}
	return r.Reply, nil
}

// appendFrame appends a transaction to the body of a batch message: the lengths
// of its header block and payload, and both.
func appendFrame(body []byte, tx *nats.Msg) []byte {
	block := "NATS/1.0\r\n"
	for key, values := range tx.Header {
		for _, value := range values {
			block += key + ": " + value + "\r\n"
		}
	}
	block += "\r\n"
	body = binary.BigEndian.AppendUint32(body, uint32(len(block)))
	body = binary.BigEndian.AppendUint32(body, uint32(len(tx.Data)))
	return append(append(body, block...), tx.Data...)
}

// Get looks a transaction up, by its txid or by a lock.
func (c *Client) Get(ctx context.Context, partition int, g judge.Get) {
	m := nats.NewMsg(fmt.Sprintf("cantus.get.%d", partition))
	m.Data = fmt.Appendf(nil, `{"txid":%d}`, g.Txid)
	if g.Lock != "" {
		m.Data = fmt.Appendf(nil, `{"lock":%q}`, g.Lock)
	}
	o := &judge.Operation{Get: &g}
	start := c.Recorder.Now()
	answer, err := c.Request(ctx, m)
	switch {
	case err != nil:
		o.Result = failed(err)
	case answer.Header.Get("Nats-Service-Error-Code") != "":
		r, err := DecodeReply(answer)
		if err != nil {
			o.Result = failed(err)
			break
		}
		o.Result = refusedBy(r.Error, &r.HighWaterMark)
	default:
		o.Outcome, g.Transaction = judge.OK, storedTransaction(answer)
	}
	c.Recorder.Add(c.Name, start, partition, o)
}

// CursorReply is the answer of a cursor: where it is, and whose.
type CursorReply struct {
	Reply
	Owner string `json:"owner"`
}

// Cursor reads a cursor, or sets it if k.Set is not nil. A refusal is not an
// error.
func (c *Client) Cursor(ctx context.Context, partition int, k judge.Cursor) (r CursorReply, err error) {
	m := nats.NewMsg(fmt.Sprintf("cantus.cursor.%d.%s", partition, k.Name))
	if k.Set != nil {
		body := map[string]any{"txid": *k.Set}
		if k.Expected != nil {
			body["expected"] = *k.Expected
		}
		if k.Owner != nil {
			body["owner"] = *k.Owner
		}
		if k.ExpectedOwner != nil {
			body["expected_owner"] = *k.ExpectedOwner
		}
		m.Data, _ = json.Marshal(body) // numbers and texts
	}
	o := &judge.Operation{Cursor: &k}
	start := c.Recorder.Now()
	defer func() { c.Recorder.Add(c.Name, start, partition, o) }()
	answer, err := c.Request(ctx, m)
	if err != nil {
		o.Result = failed(err)
		return r, err
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		o.Result = failed(err)
		return r, err
	}
	if r.Error != nil {
		o.Result = refusedBy(r.Error, &r.HighWaterMark)
	} else {
		o.Result = judge.Result{Outcome: judge.OK, HighWaterMark: &r.HighWaterMark}
	}
	if o.Txid, o.Owner = r.Txid, r.Owner; r.Time != "" {
		o.Time = nanoseconds(r.Time)
	}
	return r, nil
}

// Trim deletes what is before a txid, and returns what was asked for and done.
// A refusal is an error.
func (c *Client) Trim(ctx context.Context, partition int, before uint64) (string, error) {
	m := nats.NewMsg(fmt.Sprintf("cantus.admin.trim.%d", partition))
	m.Data = fmt.Appendf(nil, `{"before":%d}`, before)
	o := &judge.Operation{Trim: &judge.Trim{Before: before}}
	start := c.Recorder.Now()
	defer func() { c.Recorder.Add(c.Name, start, partition, o) }()
	answer, err := c.Request(ctx, m)
	if err != nil {
		o.Result = failed(err)
		return "", err
	}
	var r struct {
		Error     *Refusal `json:"error"`
		FirstTxid uint64   `json:"first_txid"`
	}
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		o.Result = failed(err)
		return "", err
	}
	if r.Error != nil {
		o.Result = refusedBy(r.Error, nil)
		return "", errors.New(r.Error.Message)
	}
	o.Outcome, o.Trim.FirstTxid = judge.OK, r.FirstTxid
	return fmt.Sprintf("before %d, to begin at %d", before, r.FirstTxid), nil
}
