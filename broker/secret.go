package broker

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"

	"github.com/cantuslog/cantus/wal"
)

// The nodes of a cluster share one secret. Whatever they prove to each other,
// or keep from others, uses a key that derives from it: see docs/adr/0018.

// minToken is the least length of a cluster's token, in bytes.
const minToken = 32

// tokenSecret returns the secret that a token stands for.
func tokenSecret(token string) wal.Secret {
	return wal.Secret{Key: deriveKey([]byte(token), "", "cluster secret"), Token: true}
}

// deriveKey returns 32 bytes for a purpose.
func deriveKey(secret []byte, salt, purpose string) []byte {
	key, err := hkdf.Key(sha256.New, secret, []byte(salt), "cantus "+purpose, sha256.Size)
	if err != nil {
		panic(err) // only for a length that SHA-256 can't give
	}
	return key
}

func newSecret() wal.Secret {
	s := wal.Secret{Key: make([]byte, wal.SecretSize)}
	_, _ = rand.Read(s.Key) // never fails, says crypto/rand
	return s
}

// routePassword returns the password of route ports that goes with a token. It
// can't depend on the cluster's id: a node that founds or joins one does not know
// it yet. Without a token there is none, or such a node could not come.
func routePassword(s wal.Secret, cluster string) string {
	if !s.Token {
		return ""
	}
	return hex.EncodeToString(deriveKey(s.Key, cluster, "routes"))
}
