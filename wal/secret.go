package wal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// SecretSize is the size of a cluster's secret, in bytes.
const SecretSize = 32

// Secret is shared by the nodes of a cluster. Everything that they prove to
// each other derives from it. It is kept in the data directory, in a file of
// its own that only the node's user can read, and never logged.
type Secret struct {
	// Key has SecretSize bytes.
	Key []byte `json:"key"`
	// Token is true if Key derives from a token that an operator gave to every
	// node. Otherwise the founders generated it.
	Token bool `json:"token,omitempty"`
}

const (
	secretFile = "cluster.key"
	// nomineeFile holds the private key of a directory that is being founded.
	nomineeFile = "founding.key"
)

// ReadSecret returns the secret in dir. The error is fs.ErrNotExist if there is
// none, and wraps [ErrDamaged] if the file is not what was written.
func ReadSecret(dir string) (Secret, error) {
	var s Secret
	path := filepath.Join(dir, secretFile)
	if err := readChecksummed(path, &s); err != nil {
		return Secret{}, err
	}
	if len(s.Key) != SecretSize {
		return Secret{}, fmt.Errorf("%w: %s holds %d bytes, not %d", ErrDamaged, path, len(s.Key), SecretSize)
	}
	return s, nil
}

// WriteSecret writes s to dir. When it returns nil the secret survives power
// loss. The caller has dir open, or has nominated it.
func WriteSecret(dir string, s Secret) error {
	if len(s.Key) != SecretSize {
		return fmt.Errorf("write %s: a secret has %d bytes, not %d", secretFile, SecretSize, len(s.Key))
	}
	return writeChecksummed(filepath.Join(dir, secretFile), s)
}

// NomineeKey returns 32 random bytes that belong to dir while it is being
// founded. They are the same each time, also after a crash, until [Open] has
// founded it. The caller has nominated dir.
func NomineeKey(dir string) ([]byte, error) {
	path := filepath.Join(dir, nomineeFile)
	var key []byte
	err := readChecksummed(path, &key)
	if err == nil && len(key) == SecretSize {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	key = make([]byte, SecretSize)
	_, _ = rand.Read(key) // never fails, says crypto/rand
	return key, writeChecksummed(path, key)
}

// removeNomineeKey removes the nominee's key of a directory that is founded.
func removeNomineeKey(dir string) error {
	err := os.Remove(filepath.Join(dir, nomineeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
