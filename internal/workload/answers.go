package workload

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

// Reply is the answer to an append: a txid and its time, or Error.
type Reply struct {
	Partition     int      `json:"partition"`
	Txid          uint64   `json:"txid"`
	Time          string   `json:"time"`
	Duplicate     bool     `json:"duplicate"`
	Error         *Refusal `json:"error"`
	HighWaterMark uint64   `json:"high_water_mark"`
}

func (r Reply) String() string {
	if r.Error == nil {
		return fmt.Sprintf("txid %d (duplicate %t)", r.Txid, r.Duplicate)
	}
	return fmt.Sprintf("%d %s: %s", r.Error.Code, r.Error.Reason, r.Error.Message)
}

// Refusal says why a request was refused.
type Refusal struct {
	Code      int        `json:"code"`
	Reason    string     `json:"reason"`
	Message   string     `json:"message"`
	Lock      string     `json:"lock"`
	Txid      uint64     `json:"txid"`
	Conflicts []Conflict `json:"conflicts"`
	Unless    *Matched   `json:"unless,omitempty"`
	FirstTxid uint64     `json:"first_txid"`
	// SessionSeq is the last number of a session that was accepted.
	SessionSeq *uint64 `json:"session_seq,omitempty"`
}

// Conflict is a lock that a transaction recorded after the high-water mark of
// the one that is refused.
type Conflict struct {
	Lock string `json:"lock"`
	Mode string `json:"mode"`
	Txid uint64 `json:"txid"`
	// Forgotten means that the log could not be searched at Txid.
	Forgotten bool `json:"forgotten,omitempty"`
}

// Matched is the item of a condition that matches.
type Matched struct {
	Item      int    `json:"item"`
	Txid      uint64 `json:"txid"`
	Forgotten bool   `json:"forgotten,omitempty"`
}

// PartitionInfo is the answer of cantus.info.<p>, as far as tests need it.
type PartitionInfo struct {
	Partition     int      `json:"partition"`
	FirstTxid     uint64   `json:"first_txid"`
	HighWaterMark uint64   `json:"high_water_mark"`
	Digest        string   `json:"digest"`
	Leader        string   `json:"leader"`
	Term          uint64   `json:"term"`
	Error         *Refusal `json:"error"`
	Replicas      []struct {
		Name          string `json:"name"`
		State         string `json:"state"`
		Voter         bool   `json:"voter"`
		HighWaterMark uint64 `json:"high_water_mark"`
	} `json:"replicas"`
	Locks struct {
		Tracked  int    `json:"tracked"`
		Capacity int    `json:"capacity"`
		Floor    uint64 `json:"floor"`
	} `json:"locks"`
}

// ReadEnd is the last message of a read: the txid to read on from, and the
// high-water mark.
type ReadEnd struct {
	Next, HighWaterMark uint64
}

// DecodeReply returns the answer to an append. It returns an error if something
// is not as in every such answer.
func DecodeReply(answer *nats.Msg) (Reply, error) {
	var r Reply
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		return r, fmt.Errorf("answer %q: %w", answer.Data, err)
	}
	code := answer.Header.Get("Nats-Service-Error-Code")
	switch {
	case r.Error == nil && (r.Txid == 0 || code != ""):
		return r, fmt.Errorf("answer with neither txid nor error: %q, header code %q", answer.Data, code)
	case r.Error == nil:
		if _, err := time.Parse(time.RFC3339Nano, r.Time); err != nil {
			return r, fmt.Errorf("answer %q: %w", answer.Data, err)
		}
	case r.Txid != 0 || code != strconv.Itoa(r.Error.Code) || answer.Header.Get("Nats-Service-Error") == "":
		return r, fmt.Errorf("refusal and headers differ: %q, headers %v", answer.Data, answer.Header)
	}
	return r, nil
}

func decodeEnd(m *nats.Msg) (ReadEnd, error) {
	next, err1 := strconv.ParseUint(m.Header.Get("Cantus-Next"), 10, 64)
	mark, err2 := strconv.ParseUint(m.Header.Get("Cantus-High-Water-Mark"), 10, 64)
	if m.Header.Get("Status") != "204" || len(m.Data) > 0 || err1 != nil || err2 != nil {
		return ReadEnd{}, fmt.Errorf("the read ends with %v %q", m.Header, m.Data)
	}
	return ReadEnd{Next: next, HighWaterMark: mark}, nil
}
