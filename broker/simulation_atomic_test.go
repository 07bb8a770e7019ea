//go:build !race

package broker

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cantuslog/cantus/subjects"
)

// dataPart is a transaction of an atomic batch. Its payload is that of the
// request, with its number.
type dataPart struct {
	locks []dataLock
}

// atomic reports whether some messages of this run are atomic batches.
func (s *dataSim) atomic() bool { return s.seed%9 >= 7 }

// split makes an atomic batch of a request, with its locks in any of the parts.
func (c *dataClient) split(r *dataRequest) {
	r.parts = make([]dataPart, 2+c.rng.IntN(3))
	for _, l := range r.locks {
		p := &r.parts[c.rng.IntN(len(r.parts))]
		p.locks = append(p.locks, l)
	}
}

// appendPart appends the header fields of a transaction.
func (r *dataRequest) appendPart(block []byte, locks []dataLock) []byte {
	for _, l := range locks {
		block = subjects.AppendField(block, dataLockHeaders[l.mode], l.name)
	}
	if r.kind != "" {
		block = subjects.AppendField(block, subjects.HeaderKind, r.kind)
	}
	return block
}

func (r *dataRequest) subject() string {
	if r.parts != nil {
		return "cantus.batch.0"
	}
	return "cantus.append.0"
}

func (r *dataRequest) body() []byte {
	if r.parts == nil {
		return []byte(r.payload)
	}
	var frame []byte
	for i, p := range r.parts {
		block := subjects.AppendBlockEnd(r.appendPart(subjects.AppendBlockStart(nil), p.locks))
		frame = appendItem(frame, block, fmt.Append(nil, r.payload, i))
	}
	return frame
}

// decodeReply returns the reply to an atomic batch as that to one transaction.
func (r *dataRequest) decodeReply(b []byte) (*subjects.Reply, error) {
	var reply subjects.Reply
	if r.parts == nil {
		return &reply, json.Unmarshal(b, &reply)
	}
	var all subjects.BatchReply
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	if all.Error != nil {
		return &subjects.Reply{Error: all.Error}, nil //nolint:nilerr // it is part of the reply
	}
	if len(all.Results) != 1 || all.Results[0].Count != len(r.parts) || all.Results[0].Error != nil {
		return nil, fmt.Errorf("want one run of %d", len(r.parts))
	}
	reply.Txid, reply.Time, reply.Duplicate = all.Results[0].Txid, all.Results[0].Time, all.Results[0].Duplicate
	return &reply, nil
}

// locksFrom returns the locks of the transaction at a position of the log and
// of those that follow it in the same atomic batch.
func (j *dataJudge) locksFrom(i int) []dataLock {
	n := min(len(j.log), i+max(int(j.log[i].place.Size), 1))
	var all []dataLock
	for _, t := range j.log[i:n] {
		all = append(all, t.locks...)
	}
	return all
}

// judgeParts checks that the transactions of a committed request follow each
// other in the log, and are those that were sent.
func (j *dataJudge) judgeParts(r *dataRequest) {
	for i, p := range r.parts {
		at := int(r.found) - 1 + i
		if at >= len(j.log) {
			j.cluster.Fail("%s has %d transactions, and %d of them are in the log", r.id, len(r.parts), i)
			return
		}
		t := &j.log[at]
		if t.place.Size != uint32(len(r.parts)) || t.place.Index != uint32(i) || !slices.Equal(t.locks, p.locks) ||
			t.kind != r.kind && r.kind != "" || t.mark != r.mark || !strings.HasSuffix(t.text, fmt.Sprint(r.payload, i)) {
			j.cluster.Fail("transaction %d is %.100q, and not number %d of %s: %+v", at+1, t.text, i, r.id, p)
		}
	}
	if size := j.log[r.found-1].place.Size; r.parts == nil && size > 0 {
		j.cluster.Fail("transaction %d (%s) is in an atomic batch of %d", r.found, r.id, size)
	}
}
