"""Published checkpoints: families of encoders, their files, and the way from them to params trees and back."""
