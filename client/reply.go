package client

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

// decodeBatch decodes the answer to a batch message, and appends its results to
// runs. It uses encoding/json only for refusals, and for answers in another
// form than nodes write.
func decodeBatch(body []byte, runs []subjects.BatchRun) (subjects.BatchReply, error) {
	s := scanner{rest: body}
	if r, ok := s.batch(runs); ok {
		return r, nil
	}
	var r subjects.BatchReply
	err := json.Unmarshal(body, &r)
	return r, err
}

// scanner reads JSON with the fields in the usual order and without white
// space. Its methods return false for any other form.
type scanner struct{ rest []byte }

func (s *scanner) batch(runs []subjects.BatchRun) (r subjects.BatchReply, ok bool) {
	if !s.literal(`{"partition":`) {
		return r, false
	}
	partition, ok := s.number()
	if !ok || !s.literal(`,"results":[`) {
		return r, false
	}
	for first := true; !s.literal(`]`); first = false {
		if !first && !s.literal(`,`) {
			return r, false
		}
		run, ok := s.run()
		if !ok {
			return r, false
		}
		runs = append(runs, run)
	}
	if !s.literal(`,"high_water_mark":`) {
		return r, false
	}
	mark, ok := s.number()
	if !ok || !s.literal(`}`) || len(s.rest) > 0 {
		return r, false
	}
	return subjects.BatchReply{Partition: int(partition), Results: runs, HighWaterMark: &mark}, true
}

func (s *scanner) run() (r subjects.BatchRun, ok bool) {
	if !s.literal(`{"index":`) {
		return r, false
	}
	index, ok := s.number()
	if !ok || !s.literal(`,"count":`) {
		return r, false
	}
	count, ok := s.number()
	if !ok {
		return r, false
	}
	r.Index, r.Count = int(index), int(count)
	if s.literal(`,"error":`) {
		return r, s.refusal(&r) && s.literal(`}`)
	}
	if !s.literal(`,"txid":`) {
		return r, false
	}
	if r.Txid, ok = s.number(); !ok {
		return r, false
	}
	if s.literal(`,"time":"`) {
		if r.Time, ok = s.time(); !ok {
			return r, false
		}
	}
	r.Duplicate = s.literal(`,"duplicate":true`)
	return r, s.literal(`}`)
}

func (s *scanner) literal(text string) bool {
	if len(s.rest) < len(text) || string(s.rest[:len(text)]) != text {
		return false
	}
	s.rest = s.rest[len(text):]
	return true
}

func (s *scanner) number() (n uint64, ok bool) {
	i := 0
	for ; i < len(s.rest) && s.rest[i] >= '0' && s.rest[i] <= '9'; i++ {
		d := uint64(s.rest[i] - '0')
		if n > (1<<64-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	if i == 0 || i > 1 && s.rest[0] == '0' {
		return 0, false
	}
	s.rest = s.rest[i:]
	return n, true
}

// time reads up to and including the closing quotation mark.
func (s *scanner) time() (t time.Time, ok bool) {
	end := bytes.IndexByte(s.rest, '"')
	if end < 0 {
		return t, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(s.rest[:end]))
	s.rest = s.rest[end+1:]
	return t, err == nil
}

// refusal reads an object into r.Error.
func (s *scanner) refusal(r *subjects.BatchRun) bool {
	end := objectEnd(s.rest)
	if end < 0 {
		return false
	}
	r.Error = new(subjects.Error)
	err := json.Unmarshal(s.rest[:end], r.Error)
	s.rest = s.rest[end:]
	return err == nil
}

// objectEnd returns the end of the JSON object at the start of b, or -1 if b
// does not start with a complete object.
func objectEnd(b []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{':
			depth++
		case c == '}':
			depth--
		}
		if depth == 0 {
			if i == 0 {
				return -1
			}
			return i + 1
		}
	}
	return -1
}
