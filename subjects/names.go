package subjects

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// DefaultPrefix is the first token of every subject unless the operator
// chose another.
const DefaultPrefix = "cantus"

// MaxPartitions is the most partitions that a cluster has.
const MaxPartitions = 1024

// Names builds the subjects under a prefix. The zero value uses
// [DefaultPrefix].
type Names struct {
	// Prefix is one or more NATS tokens joined by dots.
	Prefix string
}

func (n Names) prefix() string {
	if n.Prefix == "" {
		return DefaultPrefix
	}
	return n.Prefix
}

func (n Names) of(verb string, partition int) string {
	return n.prefix() + "." + verb + "." + strconv.Itoa(partition)
}

// Append is where one transaction is appended to a partition.
func (n Names) Append(partition int) string { return n.of("append", partition) }

// AppendKey is where one transaction is appended to the partition that key
// hashes to. The key is one NATS token.
func (n Names) AppendKey(key string) string { return n.prefix() + ".append.key." + key }

// KeyedAppend is what the NATS server maps AppendKey to. Key may be a wildcard,
// for subscribing.
func (n Names) KeyedAppend(partition int, key string) string {
	return n.of("append", partition) + "." + key
}

// PartitionOf is the partition that a key leads to, of so many: FNV-1a (32 bits) of
// its bytes, modulo their number.
func PartitionOf(key string, partitions int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	return int(h.Sum32() % uint32(partitions))
}

// Batch is where many independent transactions are appended in one message.
func (n Names) Batch(partition int) string { return n.of("batch", partition) }

// Read is where the leader reads out committed transactions.
func (n Names) Read(partition int) string { return n.of("read", partition) }

// ReplicaRead is where any replica reads out committed transactions.
func (n Names) ReplicaRead(partition int) string { return n.of("replica.read", partition) }

// Get is where one transaction is looked up.
func (n Names) Get(partition int) string { return n.of("get", partition) }

// Info is where any node describes the cluster.
func (n Names) Info() string { return n.prefix() + ".info" }

// PartitionInfo is where the leader describes its partition.
func (n Names) PartitionInfo(partition int) string { return n.of("info", partition) }

// Cursor is where a consumer's durable position is read and set. The name is
// one NATS token.
func (n Names) Cursor(partition int, name string) string {
	return n.of("cursor", partition) + "." + name
}

// Feed is where a partition's committed transactions of one kind are
// published. Kind may be a wildcard, for subscribing.
func (n Names) Feed(partition int, kind string) string {
	return n.of("feed", partition) + "." + kind
}

// PackedFeed is where a partition's committed transactions are published many in
// a message.
func (n Names) PackedFeed(partition int) string { return n.of("packed", partition) }

// Advisory is where events of the named kind are published. Kind may be a
// wildcard, for subscribing.
func (n Names) Advisory(kind string) string { return n.prefix() + ".advisory." + kind }

// Admin is where operations are asked for, and where nodes talk among
// themselves: the parts are joined by dots behind "admin".
func (n Names) Admin(parts ...string) string {
	return n.prefix() + ".admin." + strings.Join(parts, ".")
}

// CheckPrefix reports whether a prefix can begin every subject: one to four
// plain NATS tokens, none of them starting with "$" (those are the server's).
// The error is a plain one: prefixes come from operators, not over the wire.
func CheckPrefix(prefix string) error {
	tokens := strings.Split(prefix, ".")
	if len(tokens) > 4 {
		return fmt.Errorf("prefix %q has %d tokens: at most 4 are allowed", prefix, len(tokens))
	}
	for _, t := range tokens {
		if err := checkToken(t); err != nil {
			return fmt.Errorf("prefix %q: %w", prefix, err)
		}
		if strings.HasPrefix(t, "$") {
			return fmt.Errorf("prefix %q: tokens that start with $ belong to the NATS server", prefix)
		}
	}
	return nil
}
