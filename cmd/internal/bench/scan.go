package bench

import (
	"bytes"
	"encoding/json"

	"github.com/cantuslog/cantus/subjects"
)

// Answers are short JSON objects of a known make, and come a hundred thousand
// times a second: finding one number in them costs a twentieth of decoding
// them. Text within an answer cannot be mistaken for a key, as its quotes are
// escaped.
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

// scanRuns counts the transactions that a batch's answer says were committed,
// and tells whether others found the queue full.
func scanRuns(data []byte) (committed int, busy bool) {
	var reply subjects.BatchReply
	if json.Unmarshal(data, &reply) != nil {
		return 0, false
	}
	if reply.Error != nil {
		return 0, later(reply.Error)
	}
	for _, run := range reply.Results {
		switch {
		case run.Error == nil && run.Txid > 0:
			committed += run.Count
		case later(run.Error):
			busy = true
		}
	}
	return committed, busy
}

func later(e *subjects.Error) bool {
	return e != nil && (e.Reason == subjects.Busy || e.Reason == subjects.Unavailable)
}
