package workload

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/cantuslog/cantus/internal/judge"
)

// NewAppend returns the request of an append. headers are keys, each followed
// by its value.
func NewAppend(partition int, payload string, headers ...string) *nats.Msg {
	m := nats.NewMsg(fmt.Sprintf("cantus.append.%d", partition))
	m.Data = []byte(payload)
	for i := 0; i < len(headers); i += 2 {
		m.Header[headers[i]] = append(m.Header[headers[i]], headers[i+1])
	}
	return m
}

// Txid returns the txid of a transaction on the feed or in a read; 0 is none.
func Txid(m *nats.Msg) uint64 {
	id, err := strconv.ParseUint(m.Header.Get("Cantus-Txid"), 10, 64)
	if err != nil {
		return 0
	}
	return id
}

// sentTransaction returns a transaction as a client sends it.
func sentTransaction(m *nats.Msg) *judge.Transaction {
	t := &judge.Transaction{
		ID: m.Header.Get("Nats-Msg-Id"), Content: contentHash(m), Headers: headersHash(m), Kind: m.Header.Get("Cantus-Kind"),
		HighWaterMark: number(m, "Cantus-High-Water-Mark"), ExpectedLast: number(m, "Nats-Expected-Last-Sequence"),
	}
	if until := m.Header.Get("Cantus-Not-After"); until != "" {
		t.NotAfter = nanoseconds(until)
	}
	setSession(t, m)
	t.Identify()
	setLocks(t, m)
	for _, value := range m.Header["Cantus-Unless"] {
		var item judge.Item
		if err := json.Unmarshal([]byte(value), &item); err == nil {
			t.Unless = append(t.Unless, item)
		}
	}
	return t
}

// storedTransaction returns a transaction as it was read.
func storedTransaction(m *nats.Msg) *judge.Stored {
	s := &judge.Stored{Txid: Txid(m), Time: nanoseconds(m.Header.Get("Cantus-Time")), Transaction: judge.Transaction{
		ID: m.Header.Get("Cantus-Msg-Id"), Content: contentHash(m), Headers: headersHash(m), Kind: m.Header.Get("Cantus-Kind"),
		HighWaterMark: number(m, "Cantus-High-Water-Mark"),
	}}
	setSession(&s.Transaction, m)
	setLocks(&s.Transaction, m)
	if text := m.Header.Get("Cantus-Atomic"); text != "" {
		s.Atomic = &judge.Atomic{}
		if _, err := fmt.Sscanf(text, "%d-%d", &s.Atomic.First, &s.Atomic.Last); err != nil {
			panic(fmt.Sprintf("Cantus-Atomic %q: %v", text, err))
		}
	}
	s.Identify()
	return s
}

func setSession(t *judge.Transaction, m *nats.Msg) {
	if t.Session = m.Header.Get("Cantus-Session"); t.Session != "" {
		t.SessionSeq = *number(m, "Cantus-Session-Seq")
	}
	if text := m.Header.Get("Cantus-Cursor"); text != "" {
		name, txid, _ := strings.Cut(text, "=")
		to, err := strconv.ParseUint(txid, 10, 64)
		if err != nil {
			panic(fmt.Sprintf("Cantus-Cursor %q: %v", text, err))
		}
		t.Move = &judge.Move{Cursor: name, Txid: to}
	}
}

func setLocks(t *judge.Transaction, m *nats.Msg) {
	for key, locks := range map[string]*[]string{"Cantus-Write-Lock": &t.Write, "Cantus-Read-Lock": &t.Read, "Cantus-Append-Lock": &t.Append} {
		for _, list := range m.Header[key] {
			for name := range strings.SplitSeq(list, ",") {
				*locks = append(*locks, strings.TrimSpace(name))
			}
		}
	}
}

// headersHash returns a hash of the application's headers.
func headersHash(m *nats.Msg) string {
	var keys []string
	for key := range m.Header {
		if !strings.HasPrefix(key, "Cantus-") && !strings.HasPrefix(key, "Nats-") {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return "none"
	}
	slices.Sort(keys)
	h := sha256.New()
	for _, key := range keys {
		for _, text := range append([]string{key}, m.Header[key]...) {
			fmt.Fprintf(h, "%d:%s", len(text), text)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// contentHash returns a hash of the payload.
func contentHash(m *nats.Msg) string {
	h := sha256.Sum256(m.Data)
	return fmt.Sprintf("%x", h[:8])
}

func number(m *nats.Msg, key string) *uint64 {
	if m.Header.Get(key) == "" {
		return nil
	}
	n, err := strconv.ParseUint(m.Header.Get(key), 10, 64)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", key, err))
	}
	return &n
}

func nanoseconds(text string) int64 {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return at.UnixNano()
}
