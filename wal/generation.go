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

// Generation is a part of a data directory's life. One begins when its node first
// meets another one after a start, and now and then while it meets others. Its number alone says little: an
// older copy of the directory comes to the same number once more, and then has
// another nonce.
type Generation struct {
	Number uint64 `json:"number"`
	Nonce  Nonce  `json:"nonce"`
}

// Nonce is random.
type Nonce [16]byte

// MarshalText returns the nonce in hexadecimal.
func (n Nonce) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, n[:]), nil }

// UnmarshalText reads what MarshalText gave.
func (n *Nonce) UnmarshalText(b []byte) error {
	if len(b) != 2*len(n) {
		return fmt.Errorf("a nonce has %d characters, not %d", 2*len(n), len(b))
	}
	_, err := hex.Decode(n[:], b)
	return err
}

const (
	generationsFile = "generations.json"
	witnessFile     = "peers.json"
	// GenerationsKept is how many of the newest generations a directory knows.
	GenerationsKept = 128
)

// Generations returns the newest generations of the directory, at most
// [GenerationsKept], rising, with consecutive numbers. The error wraps
// [ErrDamaged] if they are not what was written.
func (s *Store) Generations() ([]Generation, error) {
	s.generating.Lock()
	defer s.generating.Unlock()
	return s.generations()
}

func (s *Store) generations() (all []Generation, err error) {
	path := filepath.Join(s.dir, generationsFile)
	if err := readSealed(path, &all); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
// ones, as Generations does. When it returns nil they survive power loss. If the
// error wraps [ErrNoSpace], none has begun, and the ones returned are those before.
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
	if err := noSpace(writeSealed(filepath.Join(s.dir, generationsFile), all)); err != nil {
		return all[:len(all)-1], fmt.Errorf("begin a generation: %w", err)
	}
	return all, nil
}

// noSpace has an error wrap ErrNoSpace if there was no room.
func noSpace(err error) error {
	if err != nil && isNoSpace(err) && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// Witness is what a directory remembers of other nodes' directories, by their
// ids. It is safe for concurrent use.
type Witness struct {
	path string

	mu   sync.Mutex
	seen map[string]Seen
}

// Seen is what is remembered of a node's directory.
type Seen struct {
	// Node is the node's name, and Newest the newest generation that it has
	// shown.
	Node   string     `json:"node"`
	Newest Generation `json:"newest"`
	// Start is the one that began with the node's last start, if it has shown it.
	Start Generation `json:"start,omitzero"`
	// Older says that since then an older copy of the directory was met, and
	// refused.
	Older bool `json:"older,omitempty"`
}

// Witness reads what the directory remembers of others. The error wraps
// [ErrDamaged] if that is not what was written.
func (s *Store) Witness() (*Witness, error) {
	w := &Witness{path: filepath.Join(s.dir, witnessFile), seen: map[string]Seen{}}
	if err := readSealed(w.path, &w.seen); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what is remembered of other nodes: %w", err)
	}
	return w, nil
}

// Get returns what is remembered of the directory with an id.
func (w *Witness) Get(id string) (Seen, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.seen[id]
	return s, ok
}

// Update has change say what is to be remembered of the directory with an id,
// given what was. When it returns nil that survives power loss. An error of
// change is returned; what change returns with it is remembered nonetheless. If
// the error wraps [ErrNoSpace] it is remembered until the process ends.
func (w *Witness) Update(id string, change func(Seen) (Seen, error)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.seen[id]
	is, err := change(was)
	if is == was {
		return err
	}
	w.seen[id] = is
	if werr := noSpace(writeSealed(w.path, w.seen)); werr != nil {
		if !errors.Is(werr, ErrNoSpace) {
			w.seen[id] = was
		}
		return errors.Join(err, fmt.Errorf("remember the directory of %s: %w", is.Node, werr))
	}
	return err
}
