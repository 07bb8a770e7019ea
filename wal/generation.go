package wal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
)

// Generation is a period in the life of a data directory. A new one begins when
// its node first meets another node after a start, and at intervals while it
// meets others. An older copy of the directory reaches the same numbers again,
// but with other nonces.
type Generation struct {
	Number uint64 `json:"number"`
	Nonce  Nonce  `json:"nonce"`
}

// Nonce is random.
type Nonce [16]byte

// MarshalText returns the nonce in hexadecimal.
func (n Nonce) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, n[:]), nil }

// UnmarshalText decodes the result of MarshalText.
func (n *Nonce) UnmarshalText(b []byte) error {
	if len(b) != 2*len(n) {
		return fmt.Errorf("a nonce has %d characters, not %d", 2*len(n), len(b))
	}
	_, err := hex.Decode(n[:], b)
	return err
}

const (
	generationsFile = "generations.json"
	peerRecordFile  = "peers.json"
	// GenerationsKept is how many of its newest generations a directory keeps.
	GenerationsKept = 128
)

// Generations returns the newest generations of the directory, at most
// [GenerationsKept], in ascending order with consecutive numbers. The error
// wraps [ErrDamaged] if the file is not what was written.
func (s *Store) Generations() ([]Generation, error) {
	s.generating.Lock()
	defer s.generating.Unlock()
	return s.generations()
}

func (s *Store) generations() (all []Generation, err error) {
	path := filepath.Join(s.dir, generationsFile)
	if err := readChecksummed(path, &all); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the generations: %w", err)
	}
	for i := 1; i < len(all); i++ {
		if all[i].Number != all[i-1].Number+1 {
			return nil, fmt.Errorf("read the generations: %w: %s skips from %d to %d", ErrDamaged, path, all[i-1].Number, all[i].Number)
		}
	}
	return all, nil
}

// BeginGeneration begins a generation of the directory and returns the newest
// ones, as Generations does. When the error is nil they survive power loss. If
// it wraps [ErrNoSpace], no generation has begun, and the earlier ones are
// returned.
func (s *Store) BeginGeneration() ([]Generation, error) {
	s.generating.Lock()
	defer s.generating.Unlock()
	all, err := s.generations()
	if err != nil {
		return nil, err
	}
	next := Generation{Number: 1}
	if n := len(all); n > 0 {
		next.Number = all[n-1].Number + 1
	}
	_, _ = rand.Read(next.Nonce[:]) // never fails, says crypto/rand
	all = append(all, next)
	all = all[max(0, len(all)-GenerationsKept):]
	if err := noSpace(writeChecksummed(filepath.Join(s.dir, generationsFile), all)); err != nil {
		return all[:len(all)-1], fmt.Errorf("begin a generation: %w", err)
	}
	return all, nil
}

// noSpace wraps an error for a full disk in ErrNoSpace.
func noSpace(err error) error {
	if err != nil && isNoSpace(err) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// PeerRecord is a directory's peer record: what it has recorded about other
// nodes' directories, by their ids. It is safe for concurrent use.
type PeerRecord struct {
	path string

	mu   sync.Mutex
	seen map[string]Seen
}

// Seen is what is recorded about a node's directory.
type Seen struct {
	// Node is the node's name, and Newest the newest generation that it has
	// presented.
	Node   string     `json:"node"`
	Newest Generation `json:"newest"`
	// Start is the generation that began with the node's last start, if known.
	Start Generation `json:"start,omitzero"`
	// Older is true if an older copy of the directory was met since then, and
	// refused.
	Older bool `json:"older,omitempty"`
}

// PeerRecord reads what the directory has recorded about others. The error
// wraps [ErrDamaged] if the file is not what was written.
func (s *Store) PeerRecord() (*PeerRecord, error) {
	r := &PeerRecord{path: filepath.Join(s.dir, peerRecordFile), seen: map[string]Seen{}}
	if err := readChecksummed(r.path, &r.seen); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what is remembered of other nodes: %w", err)
	}
	if r.seen == nil { // null, in JSON
		return nil, fmt.Errorf("read what is remembered of other nodes: %w: %s holds nothing", ErrDamaged, r.path)
	}
	return r, nil
}

// Get returns the record of the directory with an id.
func (r *PeerRecord) Get(id string) (Seen, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.seen[id]
	return s, ok
}

// Update replaces the record of the directory with an id by the result of
// change. When it returns nil the record survives power loss. An error of
// change is returned; the record is replaced nonetheless. If the error wraps
// [ErrNoSpace] the new record lasts until the process ends.
func (r *PeerRecord) Update(id string, change func(Seen) (Seen, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.seen[id]
	is, err := change(was)
	if is == was {
		return err
	}
	r.seen[id] = is
	if werr := noSpace(writeChecksummed(r.path, r.seen)); werr != nil {
		if !errors.Is(werr, ErrNoSpace) {
			r.seen[id] = was
		}
		return errors.Join(err, fmt.Errorf("remember the directory of %s: %w", is.Node, werr))
	}
	return err
}
