package bench

import (
	"bytes"
	"encoding/json"

	"github.com/cantuslog/cantus/subjects"
)

// Answers are short JSON objects of a known form, a hundred thousand a second.
// Finding one number takes a twentieth of the time for decoding. Text in an
// answer can't be mistaken for a key, since its quotes are escaped.
var (
	txidKey  = []byte(`"txid":`)
	seqKey   = []byte(`"seq":`)
	errorKey = []byte(`"error":`)
)

// scanUint finds the number that follows key.
func scanUint(data, key []byte) (n uint64, ok bool) {
	i := bytes.Index(data, key)
	if i < 0 {
		return 0, false
	}
	for i += len(key); i < len(data) && data[i] == ' '; i++ {
	}
	for ; i < len(data) && data[i] >= '0' && data[i] <= '9'; i++ {
		n, ok = n*10+uint64(data[i]-'0'), true
	}
	return n, ok
}

// runs is the content of a batch's answer.
type runs struct {
	committed, refused int // transactions; refused by a conflict
	unknown            int // with an unknown outcome
	busy               bool
	mark               uint64 // the newest txid in the answer
}

// scanRuns decodes a batch's answer. For a malformed answer it returns no runs.
func scanRuns(data []byte) (r runs) {
	var reply subjects.BatchReply
	if json.Unmarshal(data, &reply) != nil {
		return r
	}
	if reply.Error != nil {
		r.busy = later(reply.Error)
		return r
	}
	for _, run := range reply.Results {
		switch {
		case run.Error == nil && run.Txid > 0:
			r.committed += run.Count
			r.mark = max(r.mark, run.Txid+uint64(run.Count)-1)
		case run.Error != nil && run.Error.Reason == subjects.Conflict:
			r.refused += run.Count
			r.mark = max(r.mark, run.Error.Txid)
		case run.Error != nil && run.Error.Reason == subjects.Unknown:
			r.unknown += run.Count
		case later(run.Error):
			r.busy = true
		}
	}
	return r
}

func later(e *subjects.Error) bool {
	return e != nil && (e.Reason == subjects.Busy || e.Reason == subjects.Unavailable)
}
