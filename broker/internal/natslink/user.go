package natslink

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// User is the credentials of a connection within the process. One of its fields
// is set, or none if the server requires no authentication.
type User struct {
	Key   nkeys.KeyPair
	Token string
	File  string // a file with NATS credentials (JWT and seed)
}

// PublicKey returns a key pair's public key, which is the user's name.
func PublicKey(key nkeys.KeyPair) string {
	public, err := key.PublicKey()
	if err != nil {
		panic("broker: public key: " + err.Error()) // this process has generated the key
	}
	return public
}

// Options returns the credentials as options of nats.go.
func (u User) Options() []nats.Option {
	switch {
	case u.File != "":
		return []nats.Option{nats.UserCredentials(u.File)}
	case u.Token != "":
		return []nats.Option{nats.Token(u.Token)}
	case u.Key != nil:
		return []nats.Option{nats.Nkey(PublicKey(u.Key), u.Key.Sign)}
	}
	return nil
}

// connect returns the CONNECT command.
func (u User) connect(name, nonce string) ([]byte, error) {
	fields := map[string]any{
		"name": "cantus " + name, "lang": "go", "version": nats.Version, "protocol": 1,
		"verbose": false, "pedantic": false, "echo": true, "headers": true, "no_responders": false,
	}
	switch {
	case u.File != "":
		jwt, sig, err := sign(u.File, nonce)
		if err != nil {
			return nil, err
		}
		fields["jwt"], fields["sig"] = jwt, sig
	case u.Token != "":
		fields["auth_token"] = u.Token
	case u.Key != nil:
		sig, err := u.Key.Sign([]byte(nonce))
		if err != nil {
			return nil, err
		}
		fields["nkey"], fields["sig"] = PublicKey(u.Key), base64.RawURLEncoding.EncodeToString(sig)
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "CONNECT %s\r\n", b), nil
}

// sign signs the server's nonce with the key of a credentials file. It also
// returns the file's JWT.
func sign(file, nonce string) (jwt, signature string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", "", fmt.Errorf("read credentials: %w", err)
	}
	jwt, err = nkeys.ParseDecoratedJWT(b)
	if err != nil {
		return "", "", fmt.Errorf("credentials %s: %w", file, err)
	}
	key, err := nkeys.ParseDecoratedUserNKey(b)
	if err != nil {
		return "", "", fmt.Errorf("credentials %s: %w", file, err)
	}
	defer key.Wipe()
	raw, err := key.Sign([]byte(nonce))
	if err != nil {
		return "", "", fmt.Errorf("credentials %s: %w", file, err)
	}
	return jwt, base64.RawURLEncoding.EncodeToString(raw), nil
}
