package subjects_test

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/cantuslog/cantus/subjects"
)

func ptr[T any](v T) *T { return &v }

// TestJSON checks that every body is encoded as documented, and is decoded
// again.
func TestJSON(t *testing.T) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 123456789, time.UTC)
	conflict := &subjects.Error{
		Code: 409, Reason: subjects.Conflict, Message: "m", Lock: "a.42", Txid: 812,
		Conflicts: []subjects.ConflictingLock{{Lock: "a.42", Mode: "write", Txid: 812}, {Lock: "b", Mode: "read", Txid: 809}},
	}
	for name, c := range map[string]struct {
		value any
		want  string
	}{
		"append, committed": {&subjects.Reply{Partition: 0, Txid: 813, Time: at},
			`{"partition":0,"txid":813,"time":"2026-11-22T09:00:00.123456789Z"}`},
		"append, the last txid": {&subjects.Reply{Partition: 3, Txid: math.MaxUint64, Time: at.Truncate(time.Second)},
			`{"partition":3,"txid":18446744073709551615,"time":"2026-11-22T09:00:00Z"}`},
		"append, repeated": {&subjects.Reply{Txid: 1, Time: at, Duplicate: true},
			`{"partition":0,"txid":1,"time":"2026-11-22T09:00:00.123456789Z","duplicate":true}`},
		"append, refused": {&subjects.Reply{Error: conflict, HighWaterMark: ptr(uint64(815))},
			`{"partition":0,"error":{"code":409,"reason":"conflict","message":"m","lock":"a.42","txid":812,` +
				`"conflicts":[{"lock":"a.42","mode":"write","txid":812},{"lock":"b","mode":"read","txid":809}]},"high_water_mark":815}`},
		"append, refused by an empty partition": {&subjects.Reply{Error: subjects.Errorf(subjects.Busy, "%d", 1), HighWaterMark: ptr(uint64(0))},
			`{"partition":0,"error":{"code":429,"reason":"busy","message":"1"},"high_water_mark":0}`},
		"trimmed": {&subjects.Error{Code: 410, Reason: subjects.Trimmed, Message: "m", FirstTxid: 500},
			`{"code":410,"reason":"trimmed","message":"m","first_txid":500}`},
		"batch": {&subjects.BatchReply{Partition: 1, HighWaterMark: ptr(uint64(9)), Results: []subjects.BatchRun{
			{Index: 0, Count: 2, Txid: 8, Time: at},
			{Index: 2, Count: 1, Txid: 4, Duplicate: true},
			{Index: 3, Count: 1, Error: subjects.Errorf(subjects.BadRequest, "m")},
		}},
			`{"partition":1,"results":[{"index":0,"count":2,"txid":8,"time":"2026-11-22T09:00:00.123456789Z"},` +
				`{"index":2,"count":1,"txid":4,"duplicate":true},` +
				`{"index":3,"count":1,"error":{"code":400,"reason":"bad_request","message":"m"}}],"high_water_mark":9}`},
		"batch, refused": {&subjects.BatchReply{Error: subjects.Errorf(subjects.TooLarge, "m"), HighWaterMark: ptr(uint64(9))},
			`{"partition":0,"error":{"code":413,"reason":"too_large","message":"m"},"high_water_mark":9}`},
		"read, nothing said": {&subjects.ReadRequest{}, `{}`},
		"read": {&subjects.ReadRequest{From: 2, Max: 3, MaxBytes: 4, Wait: "5s", Kinds: []string{"tx"}, Lock: "a", HeadersOnly: true},
			`{"from":2,"max":3,"max_bytes":4,"wait":"5s","kinds":["tx"],"lock":"a","headers_only":true}`},
		"get by txid":     {&subjects.GetRequest{Txid: 812}, `{"txid":812}`},
		"get by lock":     {&subjects.GetRequest{Lock: "a.42"}, `{"lock":"a.42"}`},
		"cursor set":      {&subjects.CursorRequest{Txid: ptr(uint64(812)), Expected: ptr(uint64(0))}, `{"txid":812,"expected":0}`},
		"cursor taken":    {&subjects.CursorRequest{Txid: ptr(uint64(812)), Owner: ptr("b"), ExpectedOwner: ptr("")}, `{"txid":812,"owner":"b","expected_owner":""}`},
		"cursor removed":  {&subjects.CursorRequest{Txid: ptr(uint64(0))}, `{"txid":0}`},
		"cursor, not set": {&subjects.CursorReply{Name: "c", HighWaterMark: 8}, `{"partition":0,"name":"c","txid":0,"high_water_mark":8}`},
		"cursor, refused": {&subjects.CursorReply{Partition: 1, Name: "c", Txid: 3, Time: at, HighWaterMark: 8, Error: subjects.Errorf(subjects.WrongLast, "m")},
			`{"partition":1,"name":"c","txid":3,"time":"2026-11-22T09:00:00.123456789Z","high_water_mark":8,` +
				`"error":{"code":409,"reason":"wrong_last","message":"m"}}`},
		"cluster": {&subjects.ClusterInfo{Cluster: "c", Version: "1", Partitions: 4, Nodes: []subjects.NodeInfo{{Name: "n1", Ready: true}, {Name: "n2"}}, FeedKey: "k"},
			`{"cluster":"c","id":"","version":"1","partitions":4,"nodes":[{"name":"n1","ready":true},{"name":"n2","ready":false}],"feed_key":"k"}`},
		"partition": {&subjects.PartitionInfo{
			Partition: 0, FirstTxid: 1, HighWaterMark: 0, Digest: "00", BaseDigest: "11", Leader: "n1", Term: 2,
			Replicas: []subjects.ReplicaInfo{{Name: "n1", State: "leader", Voter: true}},
			Locks:    subjects.LockInfo{Tracked: 0, Capacity: 10, Floor: 0},
		},
			`{"partition":0,"first_txid":1,"high_water_mark":0,"digest":"00","base_digest":"11","leader":"n1","term":2,` +
				`"replicas":[{"name":"n1","state":"leader","voter":true,"high_water_mark":0}],"locks":{"tracked":0,"capacity":10,"floor":0}}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.Marshal(c.value)
			if err != nil || string(got) != c.want {
				t.Errorf("got  %s and %v\nwant %s", got, err, c.want)
			}
			back := reflect.New(reflect.TypeOf(c.value).Elem()).Interface()
			if err := json.Unmarshal([]byte(c.want), back); err != nil || !reflect.DeepEqual(back, c.value) {
				t.Errorf("read back: %+v and %v", back, err)
			}
		})
	}
}

func TestErrorSaysAll(t *testing.T) {
	e := subjects.Errorf(subjects.WrongLast, "expected %d", 7)
	if got, want := e.Error(), "wrong_last (409): expected 7"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if c := subjects.Reason("of a later version").Code(); c != 500 {
		t.Errorf("an unknown reason has the code %d, want 500", c)
	}
}

// TestReasonsIsACopy checks that no caller can change the table.
func TestReasonsIsACopy(t *testing.T) {
	subjects.Reasons()[subjects.Busy] = 1
	if c := subjects.Busy.Code(); c != 429 {
		t.Errorf("busy has the code %d", c)
	}
}
