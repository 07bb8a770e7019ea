package subjects

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// DefaultPrefix is the first token of every subject, unless the operator
// chooses another.
const DefaultPrefix = "cantus"

// MaxPartitions is the most partitions of a cluster.
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

// Append returns the subject to append one transaction to a partition.
func (n Names) Append(partition int) string { return n.of("append", partition) }

// AppendKey returns the subject to append one transaction to the partition that
// key hashes to. The key is one NATS token.
func (n Names) AppendKey(key string) string { return n.prefix() + ".append.key." + key }

// KeyedAppend returns the subject to which the NATS server maps AppendKey. A
// subscriber may pass a wildcard for key.
func (n Names) KeyedAppend(partition int, key string) string {
	return n.of("append", partition) + "." + key
}

// PartitionOf returns the partition of a key, of the given number: FNV-1a (32
// bits) of the key's bytes, modulo partitions.
func PartitionOf(key string, partitions int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key)) // never fails
	return int(h.Sum32() % uint32(partitions))
}

// Batch returns the subject to append many independent transactions in one
// message.
func (n Names) Batch(partition int) string { return n.of("batch", partition) }

// Read returns the subject to read committed transactions from the leader.
func (n Names) Read(partition int) string { return n.of("read", partition) }

// ReplicaRead returns the subject to read committed transactions from any
// replica.
func (n Names) ReplicaRead(partition int) string { return n.of("replica.read", partition) }

// Get returns the subject to look up one transaction.
func (n Names) Get(partition int) string { return n.of("get", partition) }

// Info returns the subject of the cluster's description, which any node
// answers.
func (n Names) Info() string { return n.prefix() + ".info" }

// PartitionInfo returns the subject of a partition's description, which its
// leader answers.
func (n Names) PartitionInfo(partition int) string { return n.of("info", partition) }

// Cursor returns the subject to read and set a consumer's durable position. The
// name is one NATS token.
func (n Names) Cursor(partition int, name string) string {
	return n.of("cursor", partition) + "." + name
}

// Cursors returns the subject to list the cursors of a partition.
func (n Names) Cursors(partition int) string { return n.of("cursors", partition) }

// Feed returns the subject on which a partition's committed transactions of one
// kind are published. A subscriber may pass a wildcard for kind.
func (n Names) Feed(partition int, kind string) string {
	return n.of("feed", partition) + "." + kind
}

// PackedFeed returns the subject on which a partition's committed transactions
// are published, many in a message.
func (n Names) PackedFeed(partition int) string { return n.of("packed", partition) }

// Advisory returns the subject on which events of a kind are published. A
// subscriber may pass a wildcard for kind.
func (n Names) Advisory(kind string) string { return n.prefix() + ".advisory." + kind }

// Admin returns a subject of an operator's request, or of messages between
// nodes: the parts, joined by dots, after "admin".
func (n Names) Admin(parts ...string) string {
	return n.prefix() + ".admin." + strings.Join(parts, ".")
}

// Namespace returns the names of a namespace's subjects.
func (n Names) Namespace(name string) Names { return Names{Prefix: n.prefix() + ".ns." + name} }

// CheckPrefix returns nil if every subject can begin with prefix: one to four
// plain NATS tokens, none of which starts with "$" (the NATS server uses
// those). The error is not an [Error]: prefixes come from operators, not over
// the wire.
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
