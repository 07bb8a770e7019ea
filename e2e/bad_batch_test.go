package e2e_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/workload"
)

// maxBatch is the most transactions a batch message may carry.
const maxBatch = 5_000

// batchReply is the answer to a batch.
type batchReply struct {
	Partition int               `json:"partition"`
	Error     *workload.Refusal `json:"error"`
	Results   []struct {
		Index     int               `json:"index"`
		Count     int               `json:"count"`
		Txid      uint64            `json:"txid"`
		Duplicate bool              `json:"duplicate"`
		Error     *workload.Refusal `json:"error"`
	} `json:"results"`
}

// frame frames one transaction of a batch.
func frame(block, payload []byte) []byte {
	f := binary.BigEndian.AppendUint32(nil, uint32(len(block)))
	f = binary.BigEndian.AppendUint32(f, uint32(len(payload)))
	return append(append(f, block...), payload...)
}

func frames(fs ...[]byte) []byte { return bytes.Join(fs, nil) }

func lengths(head, payload uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, head), payload)
}

// TestBadBatch checks that a malformed batch message has no effect, however
// much of it is well-formed.
func TestBadBatch(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	seedPartition(t, n, 0)
	good := frame(block("Foo: bar"), []byte("good"))
	refuse := func(name string, payload []byte) bad {
		return bad{name: name, payload: payload, code: 400, reason: "bad_request"}
	}
	withHeader := func(line string, names string) bad {
		return bad{name: line, block: block(line), payload: good, code: 400, reason: "bad_request", names: names}
	}
	cases := []bad{
		refuse("empty", nil),
		refuse("one byte more", append(frames(good, good), 0)),
		refuse("seven bytes more", append(frames(good, good), make([]byte, 7)...)),
		refuse("header length past the end", frames(good, lengths(100, 0), []byte("short"))),
		refuse("payload length past the end", frames(good, lengths(0, 100), []byte("short"))),
		refuse("lengths of 4 GiB", frames(good, lengths(math.MaxUint32, math.MaxUint32))),
		refuse("header length of 4 GiB", frames(good, lengths(math.MaxUint32, 1), []byte("xxxxx"))),
		refuse("lengths that wrap around", frames(good, lengths(math.MaxUint32, 9), []byte("xxxxxxxx"))),
		refuse("text", []byte("hello, this is no batch")),
		withHeader("Cantus-High-Water-Mark: 0", "Cantus-High-Water-Mark"),
		withHeader("Cantus-Write-Lock: a", "Cantus-Write-Lock"),
		withHeader("cantus-kind: a", "cantus-kind"),
		withHeader("Nats-Expected-Last-Sequence: 3", "Nats-Expected-Last-Sequence"),
		{name: "bad message headers", block: []byte("NATS/1.0\r\nnonsense\r\n\r\n"), payload: good, code: 400, reason: "bad_request"},
	}
	for cut := 1; cut < len(good); cut += 3 {
		cases = append(cases, refuse(fmt.Sprintf("cut at %d of the second", cut), frames(good, good[:cut])))
	}
	checkBad(t, n, "cantus.batch.0", 0, cases)
}

// TestBatchTooMany sends a batch of one transaction more than is allowed.
func TestBatchTooMany(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	one := frame(nil, []byte("x"))
	checkBad(t, n, "cantus.batch.1", 1, []bad{
		{name: "5,001", payload: bytes.Repeat(one, maxBatch+1), code: 413, reason: "too_large", names: "5000"},
	})
	r := dialRaw(t, n.url)
	got := sendBatch(t, r, 1, bytes.Repeat(one, maxBatch))
	if len(got.Results) != 1 || got.Results[0].Count != maxBatch || got.Results[0].Txid != 1 {
		t.Errorf("%d in one batch: %+v", maxBatch, got)
	}
}

// TestBatchNoise sends random bytes and damaged batches: each is answered, and
// only transactions that were framed are committed.
func TestBatchNoise(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	r := dialRaw(t, n.url)
	batch := frames(frame(nil, []byte("a")), frame(block("Foo: bar"), []byte("bb")), frame(nil, nil))
	for range 500 {
		noise := bytes.Clone(batch)
		for range 1 + random.IntN(3) {
			noise[random.IntN(len(noise))] = byte(random.Uint32())
		}
		sendBatch(t, r, 1, noise[:random.IntN(len(noise)+1)])
	}
	if got := sendBatch(t, r, 1, batch); got.Error != nil || len(got.Results) != 1 || got.Results[0].Count != 3 {
		t.Errorf("afterwards a good batch is answered %+v", got)
	}
}

// TestBatchOutcomes checks that each transaction of a batch has its own
// outcome.
func TestBatchOutcomes(t *testing.T) {
	t.Parallel()
	n := startNode(t, t.TempDir())
	c, r := dial(t, n.url), dialRaw(t, n.url)
	items := [][]byte{
		frame(nil, []byte("0")),
		frame(block("Cantus-Append-Lock: a.b"), []byte("1")),
		frame(block(write+"a.>", mark0), []byte("2 conflicts with 1, which is in flight")),
		frame(block(write+"b", mark0, "Nats-Msg-Id: i"), []byte("3")),
		frame(block(write+"b", mark0, "Nats-Msg-Id: i"), []byte("3")),
		frame(block(write+"b", mark0, "Nats-Msg-Id: i"), []byte("5 under the id of 3")),
		frame(block("Cantus-Wirte-Lock: b"), []byte("6")),
		frame([]byte("NATS/1.0\r\nnonsense\r\n\r\n"), []byte("7")),
		frame(block("Nats-Expected-Last-Sequence: 3"), []byte("8")),
		frame(nil, []byte("9")),
	}
	got := sendBatch(t, r, 0, frames(items...))
	outcomes := make([]string, len(items))
	for _, run := range got.Results {
		for i := range run.Count {
			switch {
			case run.Error != nil:
				outcomes[run.Index] = fmt.Sprintf("%d %s", run.Error.Code, run.Error.Reason)
			default:
				outcomes[run.Index+i] = strings.TrimSuffix(fmt.Sprintf("txid %d %t", run.Txid+uint64(i), run.Duplicate), " false")
			}
		}
	}
	want := []string{"txid 1", "txid 2", "409 conflict", "txid 3", "txid 3 true", "422 id_reused", "400 bad_request", "400 bad_request", "txid 4", "txid 5"}
	if fmt.Sprint(outcomes) != fmt.Sprint(want) {
		t.Errorf("outcomes\n%q, want\n%q", outcomes, want)
	}
	var payloads []string
	for _, m := range drain(t, c, 0) {
		payloads = append(payloads, string(m.Data))
	}
	if fmt.Sprint(payloads) != "[0 1 3 8 9]" {
		t.Errorf("committed %q", payloads)
	}
}

func sendBatch(t *testing.T, r *raw, partition int, payload []byte) batchReply {
	t.Helper()
	m := r.request(fmt.Sprintf("cantus.batch.%d", partition), nil, payload)
	var got batchReply
	if err := json.Unmarshal(m.Data, &got); err != nil {
		t.Fatalf("batch of %q answered %q: %v", payload, m.Data, err)
	}
	if (got.Error == nil) == (len(got.Results) == 0) {
		t.Fatalf("batch of %.200q answered %q", payload, m.Data)
	}
	return got
}
